// Small matrix products that stay in cache: one operand is read number by number, the other in vectors.
#pragma once

#include <algorithm>

#include "simd.h"

namespace parhelion {

constexpr int MOST_VECTORS = REGISTERS == 32 ? 4 : 2;

// How many rows of sums fit into the registers beside `vectors` vectors of the right operand.
constexpr int tile_rows(int vectors) {
    if (REGISTERS == 32) return vectors == 1 ? 12 : vectors == 2 ? 10 : vectors == 3 ? 8 : 6;
    return vectors == 1 ? 9 : 6;
}

template <typename Number>
inline Number read(const float* from) {
    Number number;
    std::memcpy(&number, from, sizeof number);
    return number;
}

// The left operand of a product, read number by number. A cursor goes along the depth for ROWS rows from row m on:
// `number(i)` is row m + i, `next()` one step deeper. Numbers are float, or int32_t for pairs of bfloat16.

// left(m, k) = data[m * row + k * step].
template <typename Number>
struct StridedOf {
    const float* data;
    long row, step;

    template <int ROWS>
    struct Cursor {
        const float* bases[(ROWS + 2) / 3];  // one for every three rows, so that addresses need few registers
        long row, step;
        Number number(int i) const { return read<Number>(bases[i / 3] + i % 3 * row); }
        void next() {
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i += 3) bases[i / 3] += step;
        }
    };

    template <int ROWS>
    Cursor<ROWS> at(int m) const {
        Cursor<ROWS> cursor{{}, row, step};
        for (int i = 0; i < ROWS; i += 3) cursor.bases[i / 3] = data + (m + i) * row;
        return cursor;
    }
};

using Strided = StridedOf<float>;
using StridedPairs = StridedOf<int32_t>;

// left(m, k) = rows[m][first + k].
template <typename Number>
struct RowsOf {
    const float* const* rows;
    long first;

    template <int ROWS>
    struct Cursor {
        const float* bases[ROWS];
        long k;
        Number number(int i) const { return read<Number>(bases[i] + k); }
        void next() { k++; }
    };

    template <int ROWS>
    Cursor<ROWS> at(int m) const {
        Cursor<ROWS> cursor;
        for (int i = 0; i < ROWS; i++) cursor.bases[i] = rows[m + i];
        cursor.k = first;
        return cursor;
    }
};

using Rows = RowsOf<float>;
using RowsOfPairs = RowsOf<int32_t>;

// left(m, k) = rows[k][first + m].
struct Columns {
    const float* const* rows;
    long first;

    explicit Columns(const Rows& turned) : rows(turned.rows), first(turned.first) {}

    template <int ROWS>
    struct Cursor {
        const float* const* rows;
        long first;
        const float* base;
        float number(int i) const { return base[i]; }
        void next() { base = *++rows + first; }  // looks up, and never reads, the row after the last
    };

    template <int ROWS>
    Cursor<ROWS> at(int m) const {
        return {rows, first + m, *rows + first + m};
    }
};

// sums[i] += sum over k of left(m + i, k) * right[k * pitch ...], in registers.
template <int ROWS, int VECTORS, typename Left>
__attribute__((always_inline)) inline void multiply_add(Vec (&sums)[ROWS][VECTORS], const Left& left, int m,
                                                        const float* right, long pitch, int depth) {
    auto cursor = left.template at<ROWS>(m);
    for (int k = 0; k < depth; k++) {
        Vec vectors[VECTORS];
#pragma GCC unroll 4
        for (int n = 0; n < VECTORS; n++) vectors[n] = load(right + n * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; i++) {
            auto number = cursor.number(i);
#pragma GCC unroll 4
            for (int n = 0; n < VECTORS; n++) sums[i][n] = add_product(sums[i][n], number, vectors[n]);
        }
        cursor.next();
        right += pitch;
    }
}

// Cuts rows x vectors into register tiles and calls f(rows of the tile, its vectors, first row, first vector), the
// first two as compile-time constants.
template <typename F>
__attribute__((always_inline)) inline void over_tiles(int rows, int vectors, F&& f) {
    for (int n = 0; n < vectors; n += MOST_VECTORS) {
        as_constant<MOST_VECTORS>(std::min(MOST_VECTORS, vectors - n), [&](auto wide) {
            constexpr int most = tile_rows(wide.value);
            int m = 0;
            for (; m + most <= rows; m += most) f(std::integral_constant<int, most>{}, wide, m, n);
            if (m < rows) as_constant<most - 1>(rows - m, [&](auto tall) { f(tall, wide, m, n); });
        });
    }
}

// Calls put(address, sums) for every vector of the product left * right; n in whole vectors.
template <typename Left, typename Put>
__attribute__((always_inline)) inline void product(float* result, long result_pitch, const Left& left,
                                                   const float* right, long pitch, int rows, int vectors, int depth,
                                                   Put&& put) {
    over_tiles(rows, vectors, [&](auto tall, auto wide, int m, int n) {
        Vec sums[tall.value][wide.value] = {};
        float* corner = result + m * result_pitch + n * LANES;
        multiply_add(sums, left, m, right + n * LANES, pitch, depth);
#pragma GCC unroll 12
        for (int i = 0; i < tall.value; i++)
#pragma GCC unroll 4
            for (int j = 0; j < wide.value; j++) put(corner + i * result_pitch + j * LANES, sums[i][j]);
    });
}

// result[m][n] = sum over k of left(m, k) * right[k][n].
template <typename Left>
__attribute__((noinline)) void multiply(float* result, long result_pitch, const Left& left, const float* right,
                                        long pitch, int rows, int vectors, int depth) {
    product(result, result_pitch, left, right, pitch, rows, vectors, depth, [](float* to, Vec sum) { store(to, sum); });
}

// result[m][n] += sum over k of left(m, k) * right[k][n]; summed from zero: a sum of sums errs less than one long sum.
template <typename Left>
__attribute__((noinline)) void accumulate(float* result, long result_pitch, const Left& left, const float* right,
                                          long pitch, int rows, int vectors, int depth) {
    product(result, result_pitch, left, right, pitch, rows, vectors, depth,
            [](float* to, Vec sum) { store(to, load(to) + sum); });
}

// Where numbers of a three-dimensional array of vectors lie; strides in vectors.
struct Vectors {
    float* data;
    long row, step;
    float* at(long i, long k) const { return data + (i * row + k * step) * LANES; }
};

// result(m, n) += sum over k of left(m, k) * right(n, k), lane by lane: as many small products as there are lanes.
__attribute__((noinline)) inline void contract(Vectors result, Vectors left, Vectors right, int rows, int columns,
                                               int depth) {
    constexpr int TALL = REGISTERS == 32 ? 4 : 2, WIDE = 4;
    auto tile = [&](auto tall, auto wide, int m, int n) {
        Vec sums[tall.value][wide.value];
        for (int i = 0; i < tall.value; i++)
            for (int j = 0; j < wide.value; j++) sums[i][j] = load(result.at(m + i, n + j));
        for (int k = 0; k < depth; k++) {
            Vec numbers[wide.value];
#pragma GCC unroll 4
            for (int j = 0; j < wide.value; j++) numbers[j] = load(right.at(n + j, k));
#pragma GCC unroll 4
            for (int i = 0; i < tall.value; i++) {
                Vec number = load(left.at(m + i, k));
#pragma GCC unroll 4
                for (int j = 0; j < wide.value; j++) sums[i][j] += number * numbers[j];
            }
        }
        for (int i = 0; i < tall.value; i++)
            for (int j = 0; j < wide.value; j++) store(result.at(m + i, n + j), sums[i][j]);
    };
    for (int m = 0; m < rows; m += TALL)
        as_constant<TALL>(std::min(TALL, rows - m), [&](auto tall) {
            for (int n = 0; n < columns; n += WIDE)
                as_constant<WIDE>(std::min(WIDE, columns - n), [&](auto wide) { tile(tall, wide, m, n); });
        });
}

// One LANES x LANES block, turned over in registers. Where only the first half of its columns matters (NARROW), or of
// its rows (FLAT), half of the work is left out: the second half of the result's rows, or columns, is not made.
template <bool NARROW, bool FLAT>
inline void transpose_block(float* to, long to_pitch, const float* from, long from_pitch) {
    constexpr int HALF = LANES / 2;
    Vec rows[LANES];
    for (int i = 0; i < (FLAT ? HALF : LANES); i++) rows[i] = load(from + i * from_pitch);
    // A round swaps the off-diagonal quarters of blocks of 2 * half rows.
    auto round = [&](int half, int i) {
        Ints low, high;
        for (int lane = 0; lane < LANES; lane++) {
            low[lane] = lane & half ? lane - half + LANES : lane;
            high[lane] = lane & half ? lane + LANES : lane + half;
        }
        Vec a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + half] = __builtin_shuffle(a, b, high);
    };
    if (!FLAT)
#pragma GCC unroll 8
        for (int i = 0; i < HALF; i++) round(HALF, i);
#pragma GCC unroll 4
    for (int half = HALF / 2; half; half /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < (NARROW || FLAT ? HALF : LANES); i++)
            if (!(i & half)) round(half, i);
    if (FLAT)
#pragma GCC unroll 8
        for (int i = 0; i < HALF; i++) {
            rows[i + HALF] = rows[i];
            round(HALF, i);
        }
    for (int i = 0; i < (NARROW ? HALF : LANES); i++) store(to + i * to_pitch, rows[i]);
}

// rows x columns, both multiples of LANES, into columns x rows; of either only the first `used_...` matter.
inline void transpose(float* to, long to_pitch, const float* from, long from_pitch, int rows, int columns,
                      int used_rows, int used_columns) {
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < columns; j += LANES) {
            float* corner = to + j * to_pitch + i;
            const float* block = from + i * from_pitch + j;
            if (used_columns - j <= LANES / 2)
                transpose_block<true, false>(corner, to_pitch, block, from_pitch);
            else if (used_rows - i <= LANES / 2)
                transpose_block<false, true>(corner, to_pitch, block, from_pitch);
            else
                transpose_block<false, false>(corner, to_pitch, block, from_pitch);
        }
}

inline void transpose(float* to, long to_pitch, const float* from, long from_pitch, int rows, int columns) {
    transpose(to, to_pitch, from, from_pitch, rows, columns, rows, columns);
}

}  // namespace parhelion
