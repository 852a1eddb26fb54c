// Vectors of the widest registers that the compiler was allowed to use, and what attention needs of them.
//
// One source serves every processor: it is compiled once per level (see setup.py), and LANES follows the level.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace parhelion {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));

template <typename Integer>
constexpr Integer round_up(Integer value, Integer step) {
    return (value + step - 1) / step * step;
}

inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// Minus zero, and not plus zero, changes no number, so that nothing is computed.
inline Vec broadcast(float value) { return value - Vec{}; }

// Where one of them is not a number: b.
inline Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}

// e to the power of x for x <= 0, to about a rounding; below -86 it stays at e^-86. Not-a-number stays so.
inline Vec exp_of_nonpositive(Vec x) {
    const float log2e = 1.4426950408889634f;
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits, here with the bias of an exponent.
    const float shift = 12582912.0f + 127.0f;
    x = maximum(broadcast(-86.0f), x);
    Vec shifted = x * log2e + shift;
    Vec rest = shifted - shift;
#if defined(__FMA__) || defined(__aarch64__)
    rest = x * log2e - rest;  // in [-1/2, 1/2], rounded once
#else
    // The logarithm of 2 in two parts; the first has so few bits that its multiples are exact.
    rest = ((x - rest * 0.693359375f) + rest * 2.12194440e-4f) * log2e;
#endif
    Vec p = rest * 0.00015353362f + 0.0013398875f;
    p = p * rest + 0.00961843692f;
    p = p * rest + 0.0555033237f;
    p = p * rest + 0.240226477f;
    p = p * rest + 0.693147182f;
    p = p * rest + 1.0f;
    return p * (Vec)((Ints)shifted << 23);
}

// f(0) + f(1) + ... + f(count - 1), in four sums side by side: sooner done, and less rounded, than one long sum.
template <typename F>
inline Vec sum_over(int count, F&& f) {
    Vec sums[4] = {};
    int i = 0;
    for (; i + 4 <= count; i += 4)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sums[j] += f(i + j);
    for (; i < count; i++) sums[0] += f(i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// bfloat16: the upper half of a float32.
struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }

inline float to_float(bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

inline Vec load(const bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Vec)(__builtin_convertvector(halves, Ints) << 16);
}

inline void store(bfloat16* to, Vec v) {
    Ints bits = (Ints)v;
    Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    rounded = v == v ? rounded : Ints{} + 0x7fc0;               // not a number stays so
    Halves halves = __builtin_convertvector(rounded, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// The first `count` < LANES numbers; zeros behind them. Nothing beyond them is touched.
inline Vec load_part(const float* from, int count) {
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_loadu_ps(__mmask16((1 << count) - 1), from);
#else
    Vec v{};
    for (int i = 0; i < count; i++) v[i] = from[i];
    return v;
#endif
}

inline Vec load_part(const bfloat16* from, int count) {
#if defined(__AVX512F__)
    __m512i halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1 << count) - 1), from));
    return (Vec)_mm512_slli_epi32(halves, 16);
#else
    Vec v{};
    for (int i = 0; i < count; i++) v[i] = to_float(from[i]);
    return v;
#endif
}

inline void store_part(float* to, Vec v, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, __mmask16((1 << count) - 1), (__m512)v);
#else
    for (int i = 0; i < count; i++) to[i] = v[i];
#endif
}

inline void store_part(bfloat16* to, Vec v, int count) {
    bfloat16 rounded[LANES];
    store(rounded, v);
    for (int i = 0; i < count; i++) to[i] = rounded[i];
}

// Two bfloat16 a lane: sum += first * first + second * second. `a` holds the same pair in every lane.
inline Vec add_product(Vec sum, int32_t a, Vec b) {
    Ints pair = Ints{} + a;
#if defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)b);
#else
    const Ints second = Ints{} + int32_t(0xffff0000);
    return sum + (Vec)(pair << 16) * (Vec)((Ints)b << 16) + (Vec)(pair & second) * (Vec)((Ints)b & second);
#endif
}

inline Vec add_product(Vec sum, float a, Vec b) { return sum + broadcast(a) * b; }

// Whether products of pairs are worth the trouble.
#if defined(__AVX512BF16__)
constexpr bool MULTIPLIES_PAIRS = true;
#else
constexpr bool MULTIPLIES_PAIRS = false;
#endif

// Two vectors of numbers that are not negative, rounded to bfloat16, as pairs.
inline Vec pairs_of(Vec first, Vec second) {
    Ints low = ((Ints)first + 0x8000) >> 16, high = ((Ints)second + 0x8000) & int32_t(0xffff0000);
    return (Vec)(low | high);
}

// A row of channels into float32 scratch, times a factor; what lies between `channels` and `padded` (a multiple of
// LANES, or `channels` itself) becomes zero.
template <typename Storage>
inline void read_row(float* to, const Storage* from, int channels, int padded, float factor = 1.0f) {
    int c = 0;
    for (; c + LANES <= channels; c += LANES) store(to + c, load(from + c) * factor);
    if (c == channels) return;
    Vec rest = load_part(from + c, channels - c) * factor;
    if (padded > channels)
        store(to + c, rest);
    else
        store_part(to + c, rest, channels - c);
}

// Adds channels to others in float32.
template <typename Storage>
inline void add_row(float* to, const Storage* from, int channels) {
    int c = 0;
    for (; c + LANES <= channels; c += LANES) store(to + c, load(to + c) + load(from + c));
    if (c == channels) return;
    store_part(to + c, load_part(to + c, channels - c) + load_part(from + c, channels - c), channels - c);
}

// A row of float32 scratch into channels.
template <typename Storage>
inline void write_row(Storage* to, const float* from, int channels) {
    int c = 0;
    for (; c + LANES <= channels; c += LANES) store(to + c, load(from + c));
    if (c < channels) store_part(to + c, load_part(from + c, channels - c), channels - c);
}

// While it lives, this thread takes numbers too small for a full mantissa for zero: weights of far-off keys times small
// gradients are often such, and an x86 processor takes a hundred times as long for each.
class TinyIsZero {
 public:
#if defined(__x86_64__)
    TinyIsZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~TinyIsZero() { _mm_setcsr(before_); }

 private:
    unsigned before_;
#else
    TinyIsZero() {}
    ~TinyIsZero() {}
#endif
};

// Asks for a row of channels that will be needed soon.
template <typename Storage>
inline void prefetch_row(const Storage* row, int channels) {
    const char *first = reinterpret_cast<const char*>(row), *last = reinterpret_cast<const char*>(row + channels);
    for (; first < last; first += 64) __builtin_prefetch(first, 0, 3);
}

// Calls f with the number as a compile-time constant: f(std::integral_constant<int, number>), 1 <= number <= Most.
template <int Most, typename F>
inline void as_constant(int number, F&& f) {
    if constexpr (Most > 0) {
        if (number == Most)
            f(std::integral_constant<int, Most>{});
        else
            as_constant<Most - 1>(number, static_cast<F&&>(f));
    }
}

}  // namespace parhelion
