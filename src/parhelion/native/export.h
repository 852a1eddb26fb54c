// What Python calls: parhelion_<operation>_{forward,backward}_{float32,bfloat16}, each taking the operation's Call.
#pragma once

#include "simd.h"

#define PARHELION_EXPORT(operation, direction, dtype, Number)                                             \
    extern "C" __attribute__((visibility("default"))) void parhelion_##operation##_##direction##_##dtype( \
        const parhelion::operation::Call* call) {                                                         \
        parhelion::operation::run_##direction<Number>(*call);                                             \
    }

#define PARHELION_EXPORTS(operation)                                    \
    PARHELION_EXPORT(operation, forward, float32, float)                \
    PARHELION_EXPORT(operation, backward, float32, float)               \
    PARHELION_EXPORT(operation, forward, bfloat16, parhelion::bfloat16) \
    PARHELION_EXPORT(operation, backward, bfloat16, parhelion::bfloat16)
