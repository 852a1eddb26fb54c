// Halo attention on a CPU, forward and backward (arXiv 2103.12731; see api.py for the contract).
//
// Work is cut into one window and one head. Its keys and values are read from the channels-last maps into cache, and
// GROUP queries attend to them at once, one query per lane: scores are [key][lane], so the softmax needs no sums
// across lanes. Scores are made CHUNK keys at a time and forgotten; the backward pass makes them anew, for one window and group at a time.
#include "cpu.h"

#include <vector>

namespace parhelion::halo {
namespace {

// Where a unit of work is.
struct Place {
    int64_t image, row, column, head;  // row and column of the block
};

template <typename Number>
class Worker {
   public:
    Worker(const Call& call, const Plan& plan, const PairTable& table_h, const PairTable& table_w)
        : call_(call), plan_(plan), table_h_(table_h), table_w_(table_w) {}

    // Takes scratch for any window of the call; backward needs more of it.
    void prepare(Scratch& scratch, bool backward) {
        size_t keys = size_t(plan_.side) * plan_.side, wide = std::max(plan_.d_padded, plan_.e_padded) * GROUP;
        size_t pairs = backward ? table_h_.size() + table_w_.size() : 0;
        size_t scores = (backward ? keys : size_t(CHUNK)) * GROUP;
        scratch.reserve(4 * keys * (plan_.d_padded + plan_.e_padded) + 9 * wide + 6 * plan_.side * GROUP + 2 * scores +
                        pairs + 8 * GROUP);
        keys_ = scratch.take(keys * plan_.d), values_ = scratch.take(keys * plan_.e_padded);
        q_pairs_ = scratch.take(wide);
        for (float** piece : {&q_rows_, &q_columns_, &out_rows_, &out_columns_}) *piece = scratch.take(wide);
        for (float** piece : {&row_parts_, &column_parts_}) *piece = scratch.take(size_t(plan_.side) * GROUP);
        scores_ = scratch.take(scores), largest_ = scratch.take(GROUP), before_ = scratch.take(GROUP);
        sum_ = scratch.take(GROUP);
        row_parts_of_.resize(keys), column_parts_of_.resize(keys);
        found_k_.resize(keys + 1), found_v_.resize(keys + 1);
        if constexpr (CONVERTED) {
            converted_k_.resize(keys + 1), converted_v_.resize(keys + 1), paired_k_.resize(keys);
            for (size_t key = 0; key < keys; key++) {
                converted_k_[key] = keys_ + key * plan_.d, converted_v_[key] = values_ + key * plan_.e;
            }
            k_rows_ = converted_k_.data(), v_rows_ = converted_v_.data();
        } else {
            k_rows_ = found_k_.data(), v_rows_ = found_v_.data();
        }
        for (int query = 0; query < plan_.per_block; query++) {
            query_rows_.push_back(query / plan_.per_axis), query_columns_.push_back(query % plan_.per_axis);
        }
        // Without tables no query has a relative logit.
        std::fill_n(row_parts_, plan_.side * GROUP, 0.0f), std::fill_n(column_parts_, plan_.side * GROUP, 0.0f);
        if (!backward) return;
        for (float** piece : {&g_rows_, &g_columns_, &grad_q_columns_}) *piece = scratch.take(wide);
        for (float** piece : {&grad_row_parts_, &grad_column_parts_}) *piece = scratch.take(size_t(plan_.side) * GROUP);
        grad_scores_ = scratch.take(scores), delta_ = scratch.take(GROUP);
        grad_keys_ = scratch.take(keys * plan_.d_padded), grad_values_ = scratch.take(keys * plan_.e_padded);
        grad_pairs_h_ = scratch.take(table_h_.size()), grad_pairs_w_ = scratch.take(table_w_.size());
    }

    // Forward, while the rows of the place that comes next are on their way.
    void forward(const Place& place, const Place& next) {
        enter(place, next);
        if (paired())
            pair_keys();
        else
            convert_keys();
        for (int group = 0; group < plan_.groups; group++) {
            read_queries(group);
            if (paired()) pair_queries(group);
            relative_logits(group);
            attend();
            write_out(group);
        }
    }

    // Forgets the gradients of the tables that `backward` gathers.
    void clear_tables() {
        std::fill_n(grad_pairs_h_, table_h_.size(), 0.0f);
        std::fill_n(grad_pairs_w_, table_w_.size(), 0.0f);
    }

    void backward(const Place& place, const Place& next) {
        enter(place, next);
        convert_keys();
        prefetch_gradients(next);
        std::fill_n(grad_keys_, key_count() * plan_.d_padded, 0.0f);
        std::fill_n(grad_values_, key_count() * plan_.e_padded, 0.0f);
        for (int group = 0; group < plan_.groups; group++) {
            read_queries(group);
            relative_logits(group);
            read_gradients(group);
            differentiate();
            differentiate_relative(group);
            write_grad_q(group);
        }
        add_grad_keys();
    }

    // Writes the gathered gradients of the tables: rows x channels each, in the units of the scaled logits.
    void write_tables(float* grad_h, float* grad_w) const {
        gather(table_h_, grad_pairs_h_, grad_h);
        gather(table_w_, grad_pairs_w_, grad_w);
    }

   private:
    static constexpr bool CONVERTED = !std::is_same_v<Number, float>;

    int key_count() const { return height_.size() * width_.size(); }

    // Finds the keys and values of a window, those on the image, and asks for those of the place that comes next.
    void enter(const Place& place, const Place& next) {
        bool moved = place.image != place_.image || place.row != place_.row || place.column != place_.column;
        place_ = place;
        if (moved) find_keys();
        first_k_ = place.head * call_.k_strides[3], first_v_ = place.head * call_.v_strides[3];
        prefetch(next);
    }

    void find_keys() {
        height_ = Span(place_.row, call_.h, call_), width_ = Span(place_.column, call_.w, call_);
        const Number* k = static_cast<const Number*>(call_.k) + at_first_key(place_, call_.k_strides);
        const Number* v = static_cast<const Number*>(call_.v) + at_first_key(place_, call_.v_strides);
        int key = 0;
        for (int i = 0; i < height_.size(); i++)
            for (int j = 0; j < width_.size(); j++, key++) {
                row_parts_of_[key] = row_parts_ + (height_.first + i) * GROUP;
                column_parts_of_[key] = column_parts_ + (width_.first + j) * GROUP;
                found_k_[key] = k + i * call_.k_strides[1] + j * call_.k_strides[2];
                found_v_[key] = v + i * call_.v_strides[1] + j * call_.v_strides[2];
            }
    }

    // Whether products are taken of pairs of bfloat16, where the processor has instructions for that. Neighbouring
    // channels make the pairs of queries and keys, neighbouring keys those of weights and values.
    bool paired() const { return CONVERTED && MULTIPLIES_PAIRS && plan_.d % 2 == 0; }

    void pair_keys() {
        const int32_t second = 0xffff0000;
        int count = key_count();
        for (int key = 0; key < count; key++)
            paired_k_[key] = reinterpret_cast<const float*>(found_k_[key] + first_k_);
        for (int key = 0; key < count; key += 2) {
            const Number *a = found_v_[key] + first_v_, *b = found_v_[std::min(key + 1, count - 1)] + first_v_;
            float* pairs = values_ + key / 2 * plan_.e_padded;
            Ints keep = Ints{} + (key + 1 < count ? second : 0);
            for (int c = 0; c < plan_.e; c += LANES) {
                int width = std::min(LANES, plan_.e - c);
                Ints low = (Ints)(width < LANES ? load_part(a + c, width) : load(a + c));
                Ints high = (Ints)(width < LANES ? load_part(b + c, width) : load(b + c));
                store(pairs + c, (Vec)(((low >> 16) & 0xffff) | (high & keep)));
            }
        }
    }

    void pair_queries(int group) {
        const Number* q = static_cast<const Number*>(call_.q) + place_.image * call_.q_strides[0] +
                          place_.head * call_.q_strides[3];
        int pairs = plan_.d / 2, padded = round_up(pairs, LANES);
        each_query(
            place_, group,
            [&](int lane, int64_t, int64_t row, int64_t column) {
                const Number* from = q + row * call_.q_strides[1] + column * call_.q_strides[2];
                std::memcpy(out_rows_ + lane * padded, from, plan_.d * sizeof(Number));
            },
            [&](int lane) { std::fill_n(out_rows_ + lane * padded, padded, 0.0f); });
        transpose(q_pairs_, GROUP, out_rows_, padded, lanes_, padded, lanes_, pairs);
    }

    // The keys and values in float32, which is how they are read.
    void convert_keys() {
        if constexpr (!CONVERTED) return;
        for (int key = 0; key < key_count(); key++) {
            read_row(keys_ + key * plan_.d, found_k_[key] + first_k_, plan_.d, plan_.d);
            read_row(values_ + key * plan_.e, found_v_[key] + first_v_, plan_.e, plan_.e);
        }
    }

    Rows key_rows(int first) const { return {k_rows_ + first, CONVERTED ? 0 : first_k_}; }
    Rows value_rows(int first) const { return {v_rows_ + first, CONVERTED ? 0 : first_v_}; }

    // Asks for what the next unit of work reads. Should its window be cut by the border in another way than this one,
    // some of it is asked for in vain.
    void prefetch(const Place& next) const {
        int64_t ahead_k = at_first_key(next, call_.k_strides) - at_first_key(place_, call_.k_strides) +
                          next.head * call_.k_strides[3];
        int64_t ahead_v = at_first_key(next, call_.v_strides) - at_first_key(place_, call_.v_strides) +
                          next.head * call_.v_strides[3];
        for (int key = 0; key < key_count(); key++) {
            prefetch_row(found_k_[key] + ahead_k, plan_.d);
            prefetch_row(found_v_[key] + ahead_v, plan_.e);
        }
        const Number* q = static_cast<const Number*>(call_.q) + next.image * call_.q_strides[0] +
                          next.row * plan_.per_axis * call_.q_strides[1] +
                          next.column * plan_.per_axis * call_.q_strides[2] + next.head * call_.q_strides[3];
        for (int query = 0; query < plan_.per_block; query++)
            prefetch_row(q + query_rows_[query] * call_.q_strides[1] + query_columns_[query] * call_.q_strides[2],
                         plan_.d);
    }

    // Where the first key of a window lies on the map; of head 0.
    int64_t at_first_key(const Place& place, const int64_t* strides) const {
        int64_t row = std::max<int64_t>(0, place.row * call_.block - call_.halo);
        int64_t column = std::max<int64_t>(0, place.column * call_.block - call_.halo);
        return place.image * strides[0] + row * strides[1] + column * strides[2];
    }

    int64_t first_row() const { return place_.row * call_.block - call_.halo + height_.first; }
    int64_t first_column() const { return place_.column * call_.block - call_.halo + width_.first; }

    // Calls f(lane, index of the query among all (image, row, column, head), its row, its column) for every query of
    // a group that is on the map, and `absent(lane)` for the other lanes.
    template <typename F, typename Absent>
    void each_query(const Place& place, int group, F&& f, Absent&& absent) const {
        for (int lane = 0; lane < plan_.lanes(group); lane++) {
            int query = group * GROUP + lane;
            if (query >= plan_.per_block) {
                absent(lane);
                continue;
            }
            int64_t row = place.row * plan_.per_axis + query_rows_[query];
            int64_t column = place.column * plan_.per_axis + query_columns_[query];
            if (row < call_.query_h && column < call_.query_w)
                f(lane, ((place.image * call_.query_h + row) * call_.query_w + column) * call_.heads + place.head,
                  row, column);
            else
                absent(lane);
        }
    }

    // The queries of a group, scaled, as rows and as columns; lanes without a query are zero.
    void read_queries(int group) {
        lanes_ = plan_.lanes(group);
        const Number* q = static_cast<const Number*>(call_.q) + place_.image * call_.q_strides[0] +
                          place_.head * call_.q_strides[3];
        each_query(
            place_, group,
            [&](int lane, int64_t, int64_t row, int64_t column) {
                read_row(q_rows_ + lane * plan_.d_padded, q + row * call_.q_strides[1] + column * call_.q_strides[2],
                         plan_.d, plan_.d_padded, call_.scale);
            },
            [&](int lane) { std::fill_n(q_rows_ + lane * plan_.d_padded, plan_.d_padded, 0.0f); });
        transpose(q_columns_, GROUP, q_rows_, plan_.d_padded, lanes_, plan_.d_padded);
    }

    void relative_logits(int group) {
        if (!table_w_) return;
        relative_logits(table_h_, group, q_columns_, row_parts_);
        relative_logits(table_w_, group, q_columns_ + plan_.first_w * GROUP, column_parts_);
    }

    void relative_logits(const PairTable& table, int group, const float* q, float* parts) const {
        for (int key = 0; key < plan_.side; key++) {
            const float* pairs = table.at(group, key);
            for (int n = 0; n < lanes_; n += LANES) {
                Vec sum{};
                for (int c = 0; c < table.channels(); c++)
                    sum += load(q + c * GROUP + n) * load(pairs + c * GROUP + n);
                store(parts + key * GROUP + n, sum);
            }
        }
    }

    // Calls f(rectangle, lane) for every rectangle of keys outside the image that takes softmax mass, and every vector
    // of lanes.
    template <typename F>
    void each_outside(F&& f) const {
        if (call_.masked) return;
        Keys rows[2] = {Keys::outside(height_, plan_.side), Keys::inside(height_)};
        Keys columns[2] = {Keys::all(plan_.side), Keys::outside(width_, plan_.side)};
        for (int i = 0; i < 2; i++)
            for (int n = 0; n < lanes_ && !rows[i].empty() && !columns[i].empty(); n += LANES)
                f(Rectangle(rows[i], row_parts_ + n, columns[i], column_parts_ + n), n);
    }

    // The softmax over chunks of keys, rescaling what was summed whenever a larger logit turns up.
    void attend() {
        std::fill_n(out_columns_, plan_.e_padded * GROUP, 0.0f);
        std::fill_n(largest_, GROUP, -INFINITY), std::fill_n(sum_, GROUP, 0.0f);
        each_outside([&](const Rectangle& outside, int n) {
            Vec largest = maximum(load(largest_ + n), outside.largest_logit());
            Vec before = load(sum_ + n) * exp_of_nonpositive(load(largest_ + n) - largest);
            Vec mass = outside.row_sum * outside.column_sum;
            store(sum_ + n, before + mass * exp_of_nonpositive(outside.largest_logit() - largest));
            store(largest_ + n, largest);
        });
        for (int first = 0; first < key_count(); first += chunk()) {
            int count = std::min(chunk(), key_count() - first);
            std::copy_n(largest_, GROUP, before_);
            if (paired()) {
                make_scores<true>(scores_, first, count, RowsOfPairs{paired_k_.data() + first, 0}, q_pairs_, plan_.d / 2);
                weigh<true>(count);
                accumulate(out_columns_, GROUP, StridedPairs{values_ + first / 2 * plan_.e_padded, 1, plan_.e_padded},
                           scores_, GROUP, plan_.e, lanes_ / LANES, (count + 1) / 2);
                continue;
            }
            make_scores<true>(scores_, first, count, key_rows(first), q_columns_, plan_.d);
            weigh<false>(count);
            accumulate(out_columns_, GROUP, Columns(value_rows(first)), scores_, GROUP, plan_.e, lanes_ / LANES, count);
        }
    }

    // The logits of `count` keys; with LARGEST also their maximum and what largest_ was before.
    template <bool LARGEST, typename Keys>
    void make_scores(float* scores, int first, int count, Keys keys, const float* q, int depth) {
        // Pairs of queries are as they came; other queries were scaled on reading.
        constexpr bool SCALED = !std::is_same_v<Keys, RowsOfPairs>;
        float factor = call_.scale;
        const float *const *row_parts = row_parts_of_.data() + first, *const *column_parts = column_parts_of_.data() + first;
        float* largest = largest_;
        over_tiles(count, lanes_ / LANES, [=](auto tall, auto wide, int m, int n) {
            Vec sums[tall.value][wide.value] = {};
            multiply_add(sums, keys, m, q + n * LANES, GROUP, depth);
#pragma GCC unroll 12
            for (int i = 0; i < tall.value; i++) {
                const float *row = row_parts[m + i] + n * LANES, *column = column_parts[m + i] + n * LANES;
#pragma GCC unroll 4
                for (int j = 0; j < wide.value; j++) {
                    if constexpr (!SCALED) sums[i][j] *= factor;
                    sums[i][j] += load(row + j * LANES) + load(column + j * LANES);
                }
            }
            float* corner = scores + m * GROUP + n * LANES;
#pragma GCC unroll 12
            for (int i = 0; i < tall.value; i++)
#pragma GCC unroll 4
                for (int j = 0; j < wide.value; j++) store(corner + i * GROUP + j * LANES, sums[i][j]);
            if constexpr (!LARGEST) return;
#pragma GCC unroll 4
            for (int j = 0; j < wide.value; j++) {
                Vec most = sums[0][j];
#pragma GCC unroll 12
                for (int i = 1; i < tall.value; i++) most = maximum(most, sums[i][j]);
                float* lane = largest + (n + j) * LANES;
                store(lane, maximum(load(lane), most));
            }
        });
    }

    // Keys of a chunk: even, so that no pair is torn, and about as many in each.
    int chunk() const {
        int chunks = (key_count() + CHUNK - 1) / CHUNK;
        return round_up((key_count() + chunks - 1) / chunks, 2);
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
        each_query(
            place_, group,
            [&](int lane, int64_t index, int64_t, int64_t) {
                write_row(out + index * plan_.e, out_rows_ + lane * plan_.e_padded, plan_.e);
                if (!call_.statistics) return;
                call_.statistics[2 * index] = largest_[lane], call_.statistics[2 * index + 1] = sum_[lane];
            },
            [](int) {});
    }

    // The gradients of the outputs, as rows and as columns, and what is known of the softmax.
    void read_gradients(int group) {
        const Number* grad = static_cast<const Number*>(call_.grad_out);
        each_query(
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
        for (int first = 0; first < key_count(); first += chunk())
            differentiate_weights(first, std::min(chunk(), key_count() - first));
        each_outside([&](const Rectangle& outside, int n) {
            Vec factor = -load(delta_ + n) * load(sum_ + n) *
                         exp_of_nonpositive(outside.largest_logit() - load(largest_ + n));
            outside.add_gradients(factor, row_parts_ + n, grad_row_parts_ + n, column_parts_ + n,
                                  grad_column_parts_ + n);
        });
        for (int first = 0; first < key_count(); first += chunk()) {
            int count = std::min(chunk(), key_count() - first);
            differentiate_scores(first, count);
            float *weights = scores_ + first * GROUP, *gradients = grad_scores_ + first * GROUP;
            accumulate(grad_values_ + first * plan_.e_padded, plan_.e_padded, Strided{weights, GROUP, 1}, g_rows_,
                       plan_.e_padded, count, plan_.e_padded / LANES, lanes_);
            accumulate(grad_keys_ + first * plan_.d_padded, plan_.d_padded, Strided{gradients, GROUP, 1}, q_rows_,
                       plan_.d_padded, count, plan_.d_padded / LANES, lanes_);
            accumulate(grad_q_columns_, GROUP, Columns(key_rows(first)), gradients, GROUP, plan_.d, lanes_ / LANES,
                       count);
        }
    }

    // scores_ become weights, grad_scores_ the gradients of the weights; delta_ gathers their products. Taken from these
    // very numbers, and not from the outputs, it cancels where one key has all the weight.
    void differentiate_weights(int first, int count) {
        float *scores = scores_ + first * GROUP, *gradients = grad_scores_ + first * GROUP;
        make_scores<false>(scores, first, count, key_rows(first), q_columns_, plan_.d);
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
        each_query(
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
                int64_t pixel = (place_.image * call_.h + first_row() + i) * call_.w + first_column() + j;
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
            each_query(
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

    const Call& call_;
    const Plan& plan_;
    const PairTable &table_h_, &table_w_;
    Place place_{-1, -1, -1, -1};
    Span height_{0, 0, call_}, width_{0, 0, call_};
    int lanes_ = 0;
    std::vector<int> query_rows_, query_columns_;   // of a query within its block
    std::vector<const float*> row_parts_of_, column_parts_of_;  // the parts of a key's logit
    std::vector<const Number*> found_k_, found_v_;  // the window's keys and values on the maps; of head 0
    std::vector<const float*> converted_k_, converted_v_, paired_k_;
    const float* const* k_rows_;  // the same in float32
    const float* const* v_rows_;
    int64_t first_k_ = 0, first_v_ = 0;  // where the head's channels begin
    // [key][channel] of the window, and [lane][channel] or [channel][lane] of the group
    float *keys_, *values_, *q_rows_, *q_pairs_, *q_columns_, *out_rows_, *out_columns_, *g_rows_, *g_columns_;
    float *row_parts_, *column_parts_;  // [key of the axis][lane]: the relative logits
    float *scores_, *grad_scores_;      // [key][lane]: of a chunk forward, of the window backward
    float *largest_, *before_, *sum_, *delta_;  // [lane]
    float *grad_keys_, *grad_values_, *grad_q_columns_, *grad_row_parts_, *grad_column_parts_;
    float *grad_pairs_h_, *grad_pairs_w_;
};

thread_local Scratch scratch;

template <typename Number>
void run_forward(const Call& call) {
    Plan plan(call);
    PairTable table_h(call, plan, call.table_h, plan.d_h, true), table_w(call, plan, call.table_w, plan.d_w, false);
    int64_t units = call.batch * plan.blocks_h * plan.blocks_w * call.heads;
    auto place_of = [&](int64_t unit) -> Place {
        int64_t block = unit / call.heads, row = block / plan.blocks_w;
        return {row / plan.blocks_h, row % plan.blocks_h, block % plan.blocks_w, unit % call.heads};
    };
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        Worker<Number> worker(call, plan, table_h, table_w);
        worker.prepare(scratch, false);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < units; unit++) {
            worker.forward(place_of(unit), place_of(std::min(unit + call.threads, units - 1)));
        }
    }
}

// Windows overlap, so rows of blocks whose windows do not are worked on together, and one kind of row after another:
// every pixel gets its parts in one order, whatever the number of threads.
template <typename Number>
void run_backward(const Call& call) {
    Plan plan(call);
    PairTable table_h(call, plan, call.table_h, plan.d_h, true), table_w(call, plan, call.table_w, plan.d_w, false);
    int64_t apart = (plan.side + call.block - 1) / call.block;
    int64_t parts_h = int64_t(plan.rows) * plan.d_h, parts_w = int64_t(plan.rows) * plan.d_w;
    int64_t tasks = call.batch * plan.blocks_h * call.heads;
    std::vector<float> partial(table_w ? tasks * (parts_h + parts_w) : 0);
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        Worker<Number> worker(call, plan, table_h, table_w);
        worker.prepare(scratch, true);
        for (int64_t kind = 0; kind < std::min<int64_t>(apart, plan.blocks_h); kind++) {
            int64_t rows = (plan.blocks_h - kind + apart - 1) / apart;
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < call.batch * rows * call.heads; task++) {
                int64_t head = task % call.heads, row = kind + task / call.heads % rows * apart;
                int64_t image = task / call.heads / rows;
                worker.clear_tables();
                for (int64_t column = 0; column < plan.blocks_w; column++)
                    worker.backward({image, row, column, head},
                                    {image, row, std::min<int64_t>(column + 1, plan.blocks_w - 1), head});
                if (!table_w) continue;
                int64_t index = (image * plan.blocks_h + row) * call.heads + head;
                float* to = partial.data() + index * (parts_h + parts_w);
                worker.write_tables(to, to + parts_h);
            }
        }
    }
    if (!table_w) return;
    for (int64_t task = 0; task < tasks; task++) {
        const float* from = partial.data() + task * (parts_h + parts_w);
        for (int64_t i = 0; i < parts_h; i++) call.grad_table_h[i] += from[i];
        for (int64_t i = 0; i < parts_w; i++) call.grad_table_w[i] += from[parts_h + i];
    }
}

}  // namespace
}  // namespace parhelion::halo

// What Python calls: parhelion_halo_{forward,backward}_{float32,bfloat16}.
#define EXPORT(direction, dtype, Number)                                                                 \
    extern "C" __attribute__((visibility("default"))) void parhelion_halo_##direction##_##dtype(         \
        const parhelion::halo::Call* call) {                                                             \
        parhelion::halo::run_##direction<Number>(*call);                                                 \
    }
EXPORT(forward, float32, float)
EXPORT(backward, float32, float)
EXPORT(forward, bfloat16, parhelion::bfloat16)
EXPORT(backward, bfloat16, parhelion::bfloat16)
