// The forward pass of one window and head.
#pragma once

#include "window.h"

namespace parhelion::halo {

template <typename Number>
class Forward : Window<Number> {
 public:
    using Window<Number>::Window;

    // Takes scratch for any window of the call.
    void prepare(Scratch& scratch) {
        size_t pairs = PAIRED ? (window_keys() / 2 + 1) * plan_.e_padded : 0;
        Window<Number>::prepare(scratch, CHUNK, 2 * wide() + GROUP + pairs);
        out_rows_ = scratch.take(wide()), out_columns_ = scratch.take(wide());
        before_ = scratch.take(GROUP), value_pairs_ = scratch.take(pairs);
    }

    // Computes a place, while the rows of the one that comes next are on their way.
    void run(const Place& place, const Place& next) {
        this->enter(place, next);
        if (paired())
            this->pair_keys(), pair_values();
        else
            this->convert_keys();
        for (int group = 0; group < plan_.groups; group++) {
            this->read_queries(group);
            if (paired()) this->pair_queries(group, out_rows_);
            this->relative_logits(group);
            attend();
            write_out(group);
        }
    }

 private:
    using Base = Window<Number>;
    using Base::call_, Base::plan_, Base::place_, Base::lanes_, Base::first_v_, Base::found_v_, Base::scores_,
        Base::largest_, Base::sum_, Base::key_count, Base::value_rows, Base::wide, Base::window_keys, Base::paired,
        Base::PAIRED;

    // Neighbouring keys make the pairs of values.
    void pair_values() {
        const int32_t second = 0xffff0000;
        int count = key_count();
        for (int key = 0; key < count; key += 2) {
            const Number *a = found_v_[key] + first_v_, *b = found_v_[std::min(key + 1, count - 1)] + first_v_;
            float* pairs = value_pairs_ + key / 2 * plan_.e_padded;
            Ints keep = Ints{} + (key + 1 < count ? second : 0);
            for (int c = 0; c < plan_.e; c += LANES) {
                int width = std::min(LANES, plan_.e - c);
                Ints low = (Ints)(width < LANES ? load_part(a + c, width) : load(a + c));
                Ints high = (Ints)(width < LANES ? load_part(b + c, width) : load(b + c));
                store(pairs + c, (Vec)(((low >> 16) & 0xffff) | (high & keep)));
            }
        }
    }

    // The softmax over chunks of keys, rescaling what was summed whenever a larger logit turns up.
    void attend() {
        std::fill_n(out_columns_, plan_.e_padded * GROUP, 0.0f);
        std::fill_n(largest_, GROUP, -INFINITY), std::fill_n(sum_, GROUP, 0.0f);
        this->each_outside([&](const Rectangle& outside, int n) {
            Vec largest = maximum(load(largest_ + n), outside.largest_logit());
            Vec before = load(sum_ + n) * exp_of_nonpositive(load(largest_ + n) - largest);
            Vec mass = outside.row_sum * outside.column_sum;
            store(sum_ + n, before + mass * exp_of_nonpositive(outside.largest_logit() - largest));
            store(largest_ + n, largest);
        });
        this->each_chunk([&](int first, int count) {
            std::copy_n(largest_, GROUP, before_);
            if (paired()) {
                this->template make_paired_scores<true>(scores_, first, count);
                weigh<true>(count);
                accumulate(out_columns_, GROUP,
                           StridedPairs{value_pairs_ + first / 2 * plan_.e_padded, 1, plan_.e_padded}, scores_, GROUP,
                           plan_.e, lanes_ / LANES, (count + 1) / 2);
                return;
            }
            this->template make_scores<true>(scores_, first, count);
            weigh<false>(count);
            accumulate(out_columns_, GROUP, Columns(value_rows(first)), scores_, GROUP, plan_.e, lanes_ / LANES, count);
        });
    }

    // Turns scores into weights of the softmax so far, or into pairs of weights.
    template <bool PAIRS>
    void weigh(int count) {
        for (int n = 0; n < lanes_; n += LANES) {
            Vec before = load(before_ + n), largest = load(largest_ + n);
            Vec shrink = exp_of_nonpositive(before - largest);
            float* scores = scores_ + n;
            auto weight = [=](int key) { return exp_of_nonpositive(load(scores + key * GROUP) - largest); };
            Vec sum = sum_over(PAIRS ? (count + 1) / 2 : count, [=](int index) {
                if constexpr (PAIRS) {
                    int key = 2 * index;
                    Vec first = weight(key), second = key + 1 < count ? weight(key + 1) : Vec{};
                    store(scores + index * GROUP, pairs_of(first, second));
                    return first + second;
                } else {
                    Vec one = weight(index);
                    store(scores + index * GROUP, one);
                    return one;
                }
            });
            for (int c = 0; c < plan_.e; c++) {
                float* out = out_columns_ + c * GROUP + n;
                store(out, load(out) * shrink);
            }
            store(sum_ + n, load(sum_ + n) * shrink + sum);
        }
    }

    void write_out(int group) {
        for (int n = 0; n < lanes_; n += LANES) {
            Vec share = 1.0f / load(sum_ + n);
            for (int c = 0; c < plan_.e; c++) {
                float* out = out_columns_ + c * GROUP + n;
                store(out, load(out) * share);
            }
            store(sum_ + n, share);
        }
        transpose(out_rows_, plan_.e_padded, out_columns_, GROUP, plan_.e_padded, lanes_);
        Number* out = static_cast<Number*>(call_.out);
        this->each_query(
            place_, group,
            [&](int lane, int64_t index, int64_t, int64_t) {
                write_row(out + index * plan_.e, out_rows_ + lane * plan_.e_padded, plan_.e);
                if (!call_.statistics) return;
                call_.statistics[2 * index] = largest_[lane], call_.statistics[2 * index + 1] = sum_[lane];
            },
            [](int) {});
    }

    float* value_pairs_;                        // [pair of keys][channel]
    float *out_rows_, *out_columns_, *before_;  // [lane][channel], [channel][lane], [lane]
};

}  // namespace parhelion::halo
