// One window and head in cache: where its keys and values are, a group of queries, relative logits, scores.
#pragma once

#include <vector>

#include "cpu.h"

// Products are inlined in each pass: as a function of both, they make the forward pass take 6% longer.
#define PARHELION_INLINE __attribute__((always_inline)) inline

namespace parhelion::halo {

template <typename Number>
class Window {
 public:
    Window(const Call& call, const Plan& plan, const PairTable& table_h, const PairTable& table_w)
        : call_(call), plan_(plan), table_h_(table_h), table_w_(table_w) {}

 protected:
    static constexpr bool CONVERTED = !std::is_same_v<Number, float>;

    // Whether products are taken of pairs of bfloat16, where the processor has instructions for that. Neighbouring
    // channels make the pairs of queries and keys. Scores are made in one way in both passes: weights of the backward
    // pass that are made from others than the sum of the forward pass do not add up to one, and then nothing cancels.
    static constexpr bool PAIRED = CONVERTED && MULTIPLIES_PAIRS;
    bool paired() const { return PAIRED && plan_.d % 2 == 0; }

    // Takes scratch for any window of the call, with scores for `score_keys` keys, and room for `more` numbers.
    void prepare(Scratch& scratch, size_t score_keys, size_t more) {
        size_t keys = window_keys(), part = size_t(plan_.side) * GROUP, scores = score_keys * GROUP;
        size_t read = CONVERTED ? keys * (plan_.d + plan_.e) : 0;
        scratch.reserve(read + 3 * wide() + 2 * part + scores + 3 * GROUP + more);
        if (CONVERTED) keys_ = scratch.take(keys * plan_.d), values_ = scratch.take(keys * plan_.e);
        q_rows_ = scratch.take(wide()), q_columns_ = scratch.take(wide());
        if (PAIRED) paired_k_.resize(keys);
        row_parts_ = scratch.take(part), column_parts_ = scratch.take(part);
        scores_ = scratch.take(scores), largest_ = scratch.take(GROUP), sum_ = scratch.take(GROUP);
        q_pairs_ = scratch.take(wide());
        // Without tables no query has a relative logit.
        std::fill_n(row_parts_, part, 0.0f), std::fill_n(column_parts_, part, 0.0f);
        row_parts_of_.resize(keys), column_parts_of_.resize(keys);
        found_k_.resize(keys + 1), found_v_.resize(keys + 1);
        if constexpr (CONVERTED) {
            converted_k_.resize(keys + 1), converted_v_.resize(keys + 1);
            for (size_t key = 0; key < keys; key++)
                converted_k_[key] = keys_ + key * plan_.d, converted_v_[key] = values_ + key * plan_.e;
            k_rows_ = converted_k_.data(), v_rows_ = converted_v_.data();
        } else {
            k_rows_ = found_k_.data(), v_rows_ = found_v_.data();
        }
        for (int query = 0; query < plan_.per_block; query++)
            query_rows_.push_back(query / plan_.per_axis), query_columns_.push_back(query % plan_.per_axis);
    }

    // Numbers of a group's rows or columns, be it queries or outputs.
    size_t wide() const { return size_t(std::max(plan_.d_padded, plan_.e_padded)) * GROUP; }
    size_t window_keys() const { return size_t(plan_.side) * plan_.side; }
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
        const Number* q = query_at(next, next.row * plan_.per_axis, next.column * plan_.per_axis);
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

    // Where the query of a row and column of the map lies, for the image and head of a place.
    const Number* query_at(const Place& place, int64_t row, int64_t column) const {
        return static_cast<const Number*>(call_.q) + place.image * call_.q_strides[0] + row * call_.q_strides[1] +
               column * call_.q_strides[2] + place.head * call_.q_strides[3];
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
                f(lane, ((place.image * call_.query_h + row) * call_.query_w + column) * call_.heads + place.head, row,
                  column);
            else
                absent(lane);
        }
    }

    // The queries of a group, scaled, as rows and as columns; lanes without a query are zero.
    void read_queries(int group) {
        lanes_ = plan_.lanes(group);
        each_query(
            place_, group,
            [&](int lane, int64_t, int64_t row, int64_t column) {
                read_row(q_rows_ + lane * plan_.d_padded, query_at(place_, row, column), plan_.d, plan_.d_padded,
                         call_.scale);
            },
            [&](int lane) { std::fill_n(q_rows_ + lane * plan_.d_padded, plan_.d_padded, 0.0f); });
        transpose(q_columns_, GROUP, q_rows_, plan_.d_padded, lanes_, plan_.d_padded);
    }

    // The keys of a window and head as pairs.
    void pair_keys() {
        int count = key_count();
        for (int key = 0; key < count; key++) paired_k_[key] = reinterpret_cast<const float*>(found_k_[key] + first_k_);
    }

    // The queries of a group as columns of pairs; `rows` is room for them as rows.
    void pair_queries(int group, float* rows) {
        int pairs = plan_.d / 2, padded = round_up(pairs, LANES);
        each_query(
            place_, group,
            [&](int lane, int64_t, int64_t row, int64_t column) {
                std::memcpy(rows + lane * padded, query_at(place_, row, column), plan_.d * sizeof(Number));
            },
            [&](int lane) { std::fill_n(rows + lane * padded, padded, 0.0f); });
        transpose(q_pairs_, GROUP, rows, padded, lanes_, padded, lanes_, pairs);
    }

    // The logits of `count` keys into `scores`; with LARGEST largest_ becomes at least their maximum.
    template <bool LARGEST>
    PARHELION_INLINE void make_scores(float* scores, int first, int count) {
        multiply_keys<LARGEST>(scores, first, count, key_rows(first), q_columns_, plan_.d);
    }

    // The same from pairs.
    template <bool LARGEST>
    PARHELION_INLINE void make_paired_scores(float* scores, int first, int count) {
        multiply_keys<LARGEST>(scores, first, count, RowsOfPairs{paired_k_.data() + first, 0}, q_pairs_, plan_.d / 2);
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
                for (int c = 0; c < table.channels(); c++) sum += load(q + c * GROUP + n) * load(pairs + c * GROUP + n);
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

    template <bool LARGEST, typename Keys>
    PARHELION_INLINE void multiply_keys(float* scores, int first, int count, Keys keys, const float* q, int depth) {
        // Pairs of queries are as they came; other queries were scaled on reading.
        constexpr bool SCALED = !std::is_same_v<Keys, RowsOfPairs>;
        float factor = call_.scale;
        const float* const* row_parts = row_parts_of_.data() + first;
        const float* const* column_parts = column_parts_of_.data() + first;
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

    // Calls f(first key, number of keys) for chunks of the keys on the image, about equally large and even, so that no
    // pair is torn.
    template <typename F>
    void each_chunk(F&& f) const {
        int keys = key_count(), chunks = (keys + CHUNK - 1) / CHUNK, chunk = round_up((keys + chunks - 1) / chunks, 2);
        for (int first = 0; first < keys; first += chunk) f(first, std::min(chunk, keys - first));
    }

    const Call& call_;
    const Plan& plan_;
    const PairTable &table_h_, &table_w_;
    Place place_{-1, -1, -1, -1};
    Span height_{0, 0, call_}, width_{0, 0, call_};
    int lanes_ = 0;
    int64_t first_k_ = 0, first_v_ = 0;                         // where the head's channels begin
    std::vector<int> query_rows_, query_columns_;               // of a query within its block
    std::vector<const float*> row_parts_of_, column_parts_of_;  // the parts of a key's logit
    std::vector<const Number*> found_k_, found_v_;              // the window's keys and values on the maps; of head 0
    std::vector<const float*> converted_k_, converted_v_, paired_k_;
    const float *const *k_rows_, *const *v_rows_;  // the same in float32
    float *keys_ = nullptr, *values_ = nullptr;    // [key][channel]
    float *q_rows_, *q_columns_, *q_pairs_;        // [lane][channel], [channel][lane], [pair of channels][lane]
    float *row_parts_, *column_parts_;             // [key of the axis][lane]: the relative logits
    float* scores_;                                // [key][lane]
    float *largest_, *sum_;                        // [lane]: of the softmax, or of its keys so far
};

}  // namespace parhelion::halo
