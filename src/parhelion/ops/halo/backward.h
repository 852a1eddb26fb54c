// The backward pass of one window and head.
#pragma once

#include "window.h"

namespace parhelion::halo {

template <typename Number>
class Backward : Window<Number> {
 public:
    using Window<Number>::Window;

    // Takes scratch for any window of the call.
    void prepare(Scratch& scratch) {
        size_t keys = window_keys(), part = size_t(plan_.side) * GROUP, pairs = table_h_.size() + table_w_.size();
        size_t grad_keys = keys * (plan_.d_padded + plan_.e_padded);
        Window<Number>::prepare(scratch, keys, keys * GROUP + 3 * wide() + 2 * part + GROUP + grad_keys + pairs);
        grad_scores_ = scratch.take(keys * GROUP), delta_ = scratch.take(GROUP);
        g_rows_ = scratch.take(wide()), g_columns_ = scratch.take(wide()), grad_q_columns_ = scratch.take(wide());
        grad_row_parts_ = scratch.take(part), grad_column_parts_ = scratch.take(part);
        grad_keys_ = scratch.take(keys * plan_.d_padded), grad_values_ = scratch.take(keys * plan_.e_padded);
        grad_pairs_h_ = scratch.take(table_h_.size()), grad_pairs_w_ = scratch.take(table_w_.size());
    }

    // Forgets the gradients of the tables that `run` gathers.
    void clear_tables() {
        std::fill_n(grad_pairs_h_, table_h_.size(), 0.0f);
        std::fill_n(grad_pairs_w_, table_w_.size(), 0.0f);
    }

    // Computes a place, while the rows of the one that comes next are on their way.
    void run(const Place& place, const Place& next) {
        this->enter(place, next);
        this->convert_keys();
        if (this->paired()) this->pair_keys();
        prefetch_gradients(next);
        std::fill_n(grad_keys_, key_count() * plan_.d_padded, 0.0f);
        std::fill_n(grad_values_, key_count() * plan_.e_padded, 0.0f);
        for (int group = 0; group < plan_.groups; group++) {
            this->read_queries(group);
            if (this->paired()) this->pair_queries(group, g_rows_);
            this->relative_logits(group);
            read_gradients(group);
            differentiate();
            differentiate_relative(group);
            write_grad_q(group);
        }
        add_grad_keys();
    }

    // Writes the gathered gradients of the tables: rows x channels each.
    void write_tables(float* grad_h, float* grad_w) const {
        gather(table_h_, grad_pairs_h_, grad_h);
        gather(table_w_, grad_pairs_w_, grad_w);
    }

 private:
    using Base = Window<Number>;
    using Base::call_, Base::plan_, Base::table_h_, Base::table_w_, Base::place_, Base::height_, Base::width_,
        Base::lanes_, Base::row_parts_, Base::column_parts_, Base::row_parts_of_, Base::column_parts_of_, Base::q_rows_,
        Base::q_columns_, Base::scores_, Base::largest_, Base::sum_, Base::key_count, Base::key_rows, Base::value_rows,
        Base::wide, Base::window_keys;

    // The gradients of the outputs, as rows and as columns, and what is known of the softmax.
    void read_gradients(int group) {
        const Number* grad = static_cast<const Number*>(call_.grad_out);
        this->each_query(
            place_, group,
            [&](int lane, int64_t index, int64_t, int64_t) {
                largest_[lane] = call_.statistics[2 * index], sum_[lane] = call_.statistics[2 * index + 1];
                read_row(g_rows_ + lane * plan_.e_padded, grad + index * plan_.e, plan_.e, plan_.e_padded);
            },
            [&](int lane) {
                largest_[lane] = sum_[lane] = 0.0f;
                std::fill_n(g_rows_ + lane * plan_.e_padded, plan_.e_padded, 0.0f);
            });
        transpose(g_columns_, GROUP, g_rows_, plan_.e_padded, lanes_, plan_.e_padded);
    }

    // Adds to the gradients of keys, values and parts of the logits, and makes that of the queries by content.
    void differentiate() {
        std::fill_n(grad_q_columns_, plan_.d_padded * GROUP, 0.0f), std::fill_n(delta_, GROUP, 0.0f);
        std::fill_n(grad_row_parts_, plan_.side * GROUP, 0.0f);
        std::fill_n(grad_column_parts_, plan_.side * GROUP, 0.0f);
        this->each_chunk([&](int first, int count) { differentiate_weights(first, count); });
        this->each_outside([&](const Rectangle& outside, int n) {
            Vec factor =
                -load(delta_ + n) * load(sum_ + n) * exp_of_nonpositive(outside.largest_logit() - load(largest_ + n));
            outside.add_gradients(factor, row_parts_ + n, grad_row_parts_ + n, column_parts_ + n,
                                  grad_column_parts_ + n);
        });
        this->each_chunk([&](int first, int count) {
            differentiate_scores(first, count);
            float *weights = scores_ + first * GROUP, *gradients = grad_scores_ + first * GROUP;
            accumulate(grad_values_ + first * plan_.e_padded, plan_.e_padded, Strided{weights, GROUP, 1}, g_rows_,
                       plan_.e_padded, count, plan_.e_padded / LANES, lanes_);
            accumulate(grad_keys_ + first * plan_.d_padded, plan_.d_padded, Strided{gradients, GROUP, 1}, q_rows_,
                       plan_.d_padded, count, plan_.d_padded / LANES, lanes_);
            accumulate(grad_q_columns_, GROUP, Columns(key_rows(first)), gradients, GROUP, plan_.d, lanes_ / LANES,
                       count);
        });
    }

    // scores_ become weights, grad_scores_ the gradients of the weights; delta_ gathers their products. Taken from
    // these very numbers, and not from the outputs, it cancels where one key has all the weight.
    void differentiate_weights(int first, int count) {
        float *scores = scores_ + first * GROUP, *gradients = grad_scores_ + first * GROUP;
        if (this->paired())
            this->template make_paired_scores<false>(scores, first, count);
        else
            this->template make_scores<false>(scores, first, count);
        Rows values = value_rows(first);
        const float* g = g_columns_;
        int depth = plan_.e;
        over_tiles(count, lanes_ / LANES, [=](auto tall, auto wide, int m, int n) {
            Vec sums[tall.value][wide.value] = {};
            multiply_add(sums, values, m, g + n * LANES, GROUP, depth);
            float* corner = gradients + m * GROUP + n * LANES;
#pragma GCC unroll 12
            for (int i = 0; i < tall.value; i++)
#pragma GCC unroll 4
                for (int j = 0; j < wide.value; j++) store(corner + i * GROUP + j * LANES, sums[i][j]);
        });
        for (int n = 0; n < lanes_; n += LANES) {
            Vec largest = load(largest_ + n), share = load(sum_ + n);
            Vec delta = sum_over(count, [=](int key) {
                int at = key * GROUP + n;
                Vec weight = exp_of_nonpositive(load(scores + at) - largest) * share;
                store(scores + at, weight);
                return weight * load(gradients + at);
            });
            store(delta_ + n, load(delta_ + n) + delta);
        }
    }

    // grad_scores_ become the gradients of the logits, and are added up by row and by column.
    void differentiate_scores(int first, int count) {
        for (int n = 0; n < lanes_; n += LANES) {
            Vec delta = load(delta_ + n);
            for (int key = first; key < first + count; key++) {
                float* gradient = grad_scores_ + key * GROUP + n;
                Vec product = load(scores_ + key * GROUP + n) * (load(gradient) - delta);
                store(gradient, product);
                float* row = grad_row_parts_ + (row_parts_of_[key] - row_parts_) + n;
                float* column = grad_column_parts_ + (column_parts_of_[key] - column_parts_) + n;
                store(row, load(row) + product), store(column, load(column) + product);
            }
        }
    }

    void differentiate_relative(int group) {
        if (!table_w_) return;
        differentiate_relative(table_h_, group, 0, grad_row_parts_, grad_pairs_h_);
        differentiate_relative(table_w_, group, plan_.first_w, grad_column_parts_, grad_pairs_w_);
    }

    void differentiate_relative(const PairTable& table, int group, int first_channel, const float* grad_parts,
                                float* grad_pairs) {
        const float* q = q_columns_ + first_channel * GROUP;
        float* grad_q = grad_q_columns_ + first_channel * GROUP;
        for (int key = 0; key < plan_.side; key++) {
            const float* pairs = table.at(group, key);
            float* grad = grad_pairs + table.offset(group, key);
            for (int n = 0; n < lanes_; n += LANES) {
                Vec part = load(grad_parts + key * GROUP + n);
                for (int c = 0; c < table.channels(); c++) {
                    int at = c * GROUP + n;
                    store(grad_q + at, load(grad_q + at) + part * load(pairs + at));
                    store(grad + at, load(grad + at) + part * load(q + at));
                }
            }
        }
    }

    void write_grad_q(int group) {
        transpose(q_rows_, plan_.d_padded, grad_q_columns_, GROUP, plan_.d_padded, lanes_);
        Number* grad_q = static_cast<Number*>(call_.grad_q);
        this->each_query(
            place_, group,
            [&](int lane, int64_t index, int64_t, int64_t) {
                float* row = q_rows_ + lane * plan_.d_padded;
                for (int c = 0; c < plan_.d; c++) row[c] *= call_.scale;
                write_row(grad_q + index * plan_.d, row, plan_.d);
            },
            [](int) {});
    }

    // Calls f(key, its index among all (image, row, column, head)) for the window's keys on the image.
    template <typename F>
    void each_key(F&& f) const {
        for (int i = 0, key = 0; i < height_.size(); i++)
            for (int j = 0; j < width_.size(); j++, key++) {
                int64_t pixel = (place_.image * call_.h + this->first_row() + i) * call_.w + this->first_column() + j;
                f(key, pixel * call_.heads + place_.head);
            }
    }

    // Asks for the gradients that this unit of work will add to, and for the outputs that the next will read.
    void prefetch_gradients(const Place& next) const {
        each_key([&](int, int64_t index) {
            prefetch_row(call_.grad_k + index * plan_.d, plan_.d);
            prefetch_row(call_.grad_v + index * plan_.e, plan_.e);
        });
        for (int group = 0; group < plan_.groups; group++)
            this->each_query(
                next, group,
                [&](int, int64_t index, int64_t, int64_t) {
                    prefetch_row(static_cast<const Number*>(call_.grad_out) + index * plan_.e, plan_.e);
                },
                [](int) {});
    }

    // Adds the gradients of the window's keys and values to the maps.
    void add_grad_keys() const {
        each_key([&](int key, int64_t index) {
            add_row(call_.grad_k + index * plan_.d, grad_keys_ + key * plan_.d_padded, plan_.d);
            add_row(call_.grad_v + index * plan_.e, grad_values_ + key * plan_.e_padded, plan_.e);
        });
    }

    // Sums over the pairs of a key and a lane that read the same row of the table.
    void gather(const PairTable& table, const float* grad_pairs, float* grad_table) const {
        std::vector<float> by_row(plan_.rows);
        std::vector<int> first_rows(GROUP);
        std::fill_n(grad_table, plan_.rows * table.channels(), 0.0f);
        for (int group = 0; group < plan_.groups; group++) {
            int lanes = plan_.lanes(group);
            for (int lane = 0; lane < lanes; lane++) first_rows[lane] = table.row_of(group, 0, lane);
            for (int c = 0; c < table.channels(); c++) {
                std::fill(by_row.begin(), by_row.end(), 0.0f);
                for (int key = 0; key < plan_.side; key++) {
                    const float* pairs = grad_pairs + table.offset(group, key) + c * GROUP;
                    float* rows = by_row.data() + key;
                    for (int lane = 0; lane < lanes; lane++) rows[first_rows[lane]] += pairs[lane];
                }
                for (int row = 0; row < plan_.rows; row++) grad_table[row * table.channels() + c] += by_row[row];
            }
        }
    }

    float *g_rows_, *g_columns_, *grad_q_columns_;  // the gradients of outputs and queries, as rows and as columns
    float *grad_scores_, *delta_;                   // [key][lane], [lane]
    float *grad_row_parts_, *grad_column_parts_;    // [key of the axis][lane]
    float *grad_keys_, *grad_values_;               // [key][channel]
    float *grad_pairs_h_, *grad_pairs_w_;           // as the tables
};

}  // namespace parhelion::halo
