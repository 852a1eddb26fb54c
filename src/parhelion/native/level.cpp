// Tells whether this processor has the instructions that the library was compiled for. Called before anything else,
// so it must not use them itself.

extern "C" __attribute__((visibility("default"))) int parhelion_runs_here() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
#if defined(__AVX512BF16__)
           && __builtin_cpu_supports("avx512bf16")
#endif
        ;
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}
