// What a call asks for, and what follows from it: sizes, spelled-out tables, the keys outside the image.
#pragma once

#include <cmath>
#include <cstdint>

#include "scratch.h"
#include "tile.h"

namespace parhelion::halo {

constexpr int GROUP = 64;   // queries that are worked on at once
constexpr int CHUNK = 112;  // most keys whose scores are held at once

// Mirrors `_Call` in cpu.py. Strides are in numbers, for batch, h, w and heads; channels lie side by side.
struct Call {
    int64_t batch, h, w, query_h, query_w, heads, d, e;
    int64_t block, halo, stride, step, masked, summed, threads;
    int64_t q_strides[4], k_strides[4], v_strides[4];
    float scale;
    const void *q, *k, *v;
    const float *table_h, *table_w;  // null: content only
    void* out;                       // contiguous
    float* statistics;               // per query and head: largest logit, 1 / sum; null: not wanted
    const void* grad_out;
    void* grad_q;            // contiguous, as the gradients below
    float *grad_k, *grad_v;  // zeros on entry
    float *grad_table_h, *grad_table_w;
};

// The numbers that follow from a call.
struct Plan {
    int side, per_axis, per_block, groups, blocks_h, blocks_w, rows, d, e, d_padded, e_padded;
    int d_h, d_w, first_w;  // channels of q that meet either table, and where the second part starts

    explicit Plan(const Call& call) {
        side = call.block + 2 * call.halo;
        per_axis = call.block / call.stride;
        per_block = per_axis * per_axis;
        groups = (per_block + GROUP - 1) / GROUP;
        blocks_h = (call.h + call.block - 1) / call.block;
        blocks_w = (call.w + call.block - 1) / call.block;
        rows = 2 * call.block + 2 * call.halo - 1;
        d = call.d, e = call.e;
        d_padded = round_up(d, LANES), e_padded = round_up(e, LANES);
        d_h = call.summed ? d : d / 2;
        d_w = call.summed ? d : d - d / 2;
        first_w = call.summed ? 0 : d / 2;
    }

    // Queries of a group, rounded up to whole vectors.
    int lanes(int group) const { return std::min(GROUP, round_up(per_block - group * GROUP, LANES)); }
};

// Where a unit of work is.
struct Place {
    int64_t image, row, column, head;  // row and column of the block
};

// The part of a window, from `first` up to `last`, that lies on the image; one axis.
struct Span {
    int first, last;
    Span(int64_t index, int64_t size, const Call& call) {
        int64_t start = index * call.block - call.halo;
        first = std::max<int64_t>(0, -start);
        last = std::min<int64_t>(call.block + 2 * call.halo, size - start);
    }
    int size() const { return last - first; }
};

// A relative table with the embedding of every (key, query) pair of an axis spelled out, so that logits are products
// of whole vectors: [group][key][channel][lane].
class PairTable {
 public:
    PairTable(const Call& call, const Plan& plan, const float* table, int channels, bool vertical)
        : plan_(plan), channels_(channels), vertical_(vertical), call_(call) {
        if (!table) return;
        numbers_.reserve(size_t(plan.groups) * plan.side * channels * GROUP);
        all_ = numbers_.take(size_t(plan.groups) * plan.side * channels * GROUP);
        for (int group = 0; group < plan.groups; group++)
            for (int lane = 0; lane < plan.lanes(group); lane++)
                for (int key = 0; key < plan.side; key++) {
                    const float* row = table + int64_t(row_of(group, key, lane)) * channels;
                    float* to = at(group, key) + lane;
                    for (int c = 0; c < channels; c++) to[c * GROUP] = row[c];
                }
    }

    int channels() const { return channels_; }
    explicit operator bool() const { return all_; }
    size_t size() const { return size_t(plan_.groups) * plan_.side * channels_ * GROUP; }
    size_t offset(int group, int key) const { return (size_t(group) * plan_.side + key) * channels_ * GROUP; }
    float* at(int group, int key) const { return all_ + offset(group, key); }

    // The row of the table for a key and the query in a lane; lanes without a query read those of the last one.
    int row_of(int group, int key, int lane) const {
        int query = std::min(group * GROUP + lane, plan_.per_block - 1);
        int index = vertical_ ? query / plan_.per_axis : query % plan_.per_axis;
        return key - int(call_.step) * index + int(call_.block) - 1;
    }

 private:
    const Plan& plan_;
    int channels_;
    bool vertical_;
    const Call& call_;
    Scratch numbers_;
    float* all_ = nullptr;
};

// Keys of one axis in up to two runs.
struct Keys {
    int runs[2][2];

    static Keys all(int side) { return {{{0, side}, {0, 0}}}; }
    static Keys inside(Span span) { return {{{span.first, span.last}, {0, 0}}}; }
    static Keys outside(Span span, int side) { return {{{0, span.first}, {span.last, side}}}; }

    bool empty() const { return runs[0][0] == runs[0][1] && runs[1][0] == runs[1][1]; }

    template <typename F>
    void each(F&& f) const {
        for (auto& run : runs)
            for (int key = run[0]; key < run[1]; key++) f(key);
    }
};

// A rectangle of keys outside the image, for one vector of queries. Keys there are zero, so that a logit is a part of
// its row plus a part of its column, its exponential a product, and the sum over the rectangle a product of two sums.
struct Rectangle {
    const Keys &rows, &columns;
    Vec largest_row, largest_column, row_sum, column_sum;

    // The logits' parts lie GROUP numbers apart from key to key.
    Rectangle(const Keys& rows, const float* row_parts, const Keys& columns, const float* column_parts)
        : rows(rows), columns(columns) {
        largest_row = largest(rows, row_parts), row_sum = sum(rows, row_parts, largest_row);
        largest_column = largest(columns, column_parts), column_sum = sum(columns, column_parts, largest_column);
    }

    Vec largest_logit() const { return largest_row + largest_column; }

    // Adds what the logits' gradients, `factor` times the exponentials, are for the parts.
    void add_gradients(Vec factor, const float* row_parts, float* grad_rows, const float* column_parts,
                       float* grad_columns) const {
        add(rows, row_parts, largest_row, factor * column_sum, grad_rows);
        add(columns, column_parts, largest_column, factor * row_sum, grad_columns);
    }

 private:
    static Vec largest(const Keys& keys, const float* parts) {
        Vec most = broadcast(-INFINITY);
        keys.each([&](int key) { most = maximum(most, load(parts + key * GROUP)); });
        return most;
    }

    static Vec sum(const Keys& keys, const float* parts, Vec largest) {
        Vec total{};
        keys.each([&](int key) { total += exp_of_nonpositive(load(parts + key * GROUP) - largest); });
        return total;
    }

    static void add(const Keys& keys, const float* parts, Vec largest, Vec factor, float* gradients) {
        keys.each([&](int key) {
            Vec weight = exp_of_nonpositive(load(parts + key * GROUP) - largest);
            store(gradients + key * GROUP, load(gradients + key * GROUP) + factor * weight);
        });
    }
};

}  // namespace parhelion::halo
