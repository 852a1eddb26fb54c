// Axial attention on a CPU, forward and backward (arXiv 2010.03019; see api.py for the contract).
//
// Lines along the axis do not meet, so a lane of a vector works on one line of one head and LANES of them run side by
// side. Maps are turned over on reading, to [pixel of the line][channel][lane]. Logits are made QUERIES pixels at a
// time and forgotten; the backward pass makes them anew.
#include <cstdint>
#include <vector>

#include "export.h"
#include "scratch.h"
#include "tile.h"

namespace parhelion::axial {

// Mirrors `_Call` in cpu.py. Strides are in numbers: images, pixels along the axis, lines, heads.
struct Call {
    int64_t batch, length, lines, heads, d, e, threads;
    int64_t q_strides[4], v_strides[4], out_strides[4], grad_q_strides[4];
    const void *q, *v;
    const float* table;  // 2 length - 1 rows: offsets -(length - 1) to length - 1
    const void* plus;    // laid out as `out`: what is added to it; null: nothing
    void* out;
    const void* grad_out;   // laid out as `out`
    void *grad_q, *grad_v;  // grad_v is laid out as `out`
    float* grad_table;      // zeros on entry
};

namespace {

constexpr int QUERIES = 4;

template <typename Number>
class Worker {
 public:
    explicit Worker(const Call& call) : call_(call) {
        length_ = call.length, d_ = call.d, e_ = call.e;
        d_padded_ = round_up(d_, LANES), e_padded_ = round_up(e_, LANES);
        d_made_ = round_up(d_, LANES / 2), e_made_ = round_up(e_, LANES / 2);
    }

    void prepare(Scratch& scratch, bool backward) {
        size_t q = size_t(length_) * d_made_ * LANES, v = size_t(length_) * e_made_ * LANES;
        size_t logits = size_t(QUERIES) * length_ * LANES, rows = size_t(std::max(d_padded_, e_padded_)) * LANES;
        scratch.reserve(2 * q + 3 * v + 2 * logits + rows + size_t(length_) * (LANES + 2) * d_padded_);
        q_ = scratch.take(q), v_ = scratch.take(v), out_ = scratch.take(v);
        logits_ = scratch.take(logits), rows_ = scratch.take(rows);
        if (!backward) return;
        grad_q_ = scratch.take(q), grad_v_ = scratch.take(v), grad_logits_ = scratch.take(logits);
        q_rows_ = scratch.take(size_t(length_) * d_padded_ * LANES),
        grad_table_ = scratch.take(size_t(2 * length_) * d_padded_);
    }

    void forward(int64_t unit) {
        enter(unit);
        read(q_, call_.q, call_.q_strides, d_, d_padded_);
        read(v_, call_.v, call_.v_strides, e_, e_padded_);
        std::fill_n(out_, size_t(length_) * e_made_ * LANES, 0.0f);
        for (int first = 0; first < length_; first += QUERIES) {
            int count = std::min(QUERIES, length_ - first);
            logits(first, count);
            contract(map(out_, first, e_made_), queries(logits_), by_channel(v_, 0, e_made_), count, e_, length_);
        }
        write(call_.out, out_, call_.out_strides, e_, e_padded_, call_.plus);
    }

    // Also writes this unit's share of the table's gradient: 2 length - 1 rows of d.
    void backward(int64_t unit, float* grad_table) {
        enter(unit);
        read(q_, call_.q, call_.q_strides, d_, d_padded_);
        read(v_, call_.v, call_.v_strides, e_, e_padded_);
        read(out_, call_.grad_out, call_.out_strides, e_, e_padded_);
        std::fill_n(grad_q_, size_t(length_) * d_made_ * LANES, 0.0f);
        std::fill_n(grad_v_, size_t(length_) * e_made_ * LANES, 0.0f);
        std::fill_n(grad_table_, size_t(2 * length_) * d_padded_, 0.0f);
        for (int pixel = 0; pixel < length_; pixel++)
            transpose(q_rows_ + pixel * d_padded_ * LANES, d_padded_, q_ + pixel * d_made_ * LANES, LANES, d_padded_,
                      LANES, d_, LANES);
        for (int first = 0; first < length_; first += QUERIES) {
            int count = std::min(QUERIES, length_ - first);
            logits(first, count);
            std::fill_n(grad_logits_, size_t(count) * length_ * LANES, 0.0f);
            contract(queries(grad_logits_), map(out_, first, e_made_), map(v_, 0, e_made_), count, length_, e_);
            contract(map(grad_v_, 0, e_made_), by_key(logits_), by_channel(out_, first, e_made_), length_, e_, count);
            for (int i = 0; i < count; i++) differentiate_logits(first + i, grad_logits_ + i * length_ * LANES);
        }
        write(call_.grad_q, grad_q_, call_.grad_q_strides, d_, d_padded_);
        write(call_.grad_v, grad_v_, call_.out_strides, e_, e_padded_);
        for (int row = 0; row < 2 * length_ - 1; row++)
            std::copy_n(grad_table_ + row * d_padded_, d_, grad_table + row * d_);
    }

 private:
    int64_t units_per_image() const { return (call_.lines * call_.heads + LANES - 1) / LANES; }

    void enter(int64_t unit) {
        image_ = unit / units_per_image();
        first_pair_ = unit % units_per_image() * LANES;
        lanes_ = std::min<int64_t>(LANES, call_.lines * call_.heads - first_pair_);
    }

    // Numbers before the first pixel of a lane's line.
    int64_t line_of(int lane, const int64_t* strides) const {
        int64_t pair = first_pair_ + lane;
        return image_ * strides[0] + pair / call_.heads * strides[2] + pair % call_.heads * strides[3];
    }

    void read(float* to, const void* from, const int64_t* strides, int channels, int padded) {
        int64_t lines[LANES], pitch = round_up(channels, LANES / 2) * LANES;
        for (int lane = 0; lane < lanes_; lane++) lines[lane] = line_of(lane, strides);
        std::fill_n(rows_ + lanes_ * padded, (LANES - lanes_) * padded, 0.0f);
        for (int pixel = 0; pixel < length_; pixel++) {
            const Number* row = static_cast<const Number*>(from) + pixel * strides[1];
            const Number* ahead = row + std::min(6, length_ - 1 - pixel) * strides[1];
            for (int lane = 0; lane < lanes_; lane++) {
                prefetch_row(ahead + lines[lane], channels);
                read_row(rows_ + lane * padded, row + lines[lane], channels, padded);
            }
            transpose(to + pixel * pitch, LANES, rows_, padded, LANES, padded, LANES, channels);
        }
    }

    void write(void* to, const float* from, const int64_t* strides, int channels, int padded,
               const void* plus = nullptr) {
        int64_t lines[LANES], pitch = round_up(channels, LANES / 2) * LANES;
        for (int lane = 0; lane < lanes_; lane++) lines[lane] = line_of(lane, strides);
        for (int pixel = 0; pixel < length_; pixel++) {
            transpose(rows_, padded, from + pixel * pitch, LANES, padded, LANES, channels, LANES);
            Number* row = static_cast<Number*>(to) + pixel * strides[1];
            for (int lane = 0; plus && lane < lanes_; lane++)
                add_row(rows_ + lane * padded, static_cast<const Number*>(plus) + pixel * strides[1] + lines[lane],
                        channels);
            for (int lane = 0; lane < lanes_; lane++) write_row(row + lines[lane], rows_ + lane * padded, channels);
        }
    }

    // The table's rows of the offsets from a query to pixels 0, 1, ...
    const float* offsets(int query) const { return call_.table + int64_t(length_ - 1 - query) * d_; }

    void logits(int first, int count) {
        for (int i = 0; i < count; i++)
            multiply(logits_ + i * length_ * LANES, LANES, Strided{offsets(first + i), d_, 1},
                     q_ + (first + i) * d_made_ * LANES, LANES, length_, 1, d_);
    }

    // From the gradients of one query's logits to those of the query and of the table.
    void differentiate_logits(int query, const float* grad_logits) {
        accumulate(grad_q_ + query * d_made_ * LANES, LANES, Strided{offsets(query), 1, d_}, grad_logits, LANES, d_, 1,
                   length_);
        accumulate(grad_table_ + (length_ - 1 - query) * d_padded_, d_padded_, Strided{grad_logits, LANES, 1},
                   q_rows_ + query * d_padded_ * LANES, d_padded_, length_, d_padded_ / LANES, LANES);
    }

    // A map as (pixel, channel) and as (channel, pixel); logits as (query, key) and as (key, query).
    static Vectors map(float* data, int first, int made) { return {data + first * made * LANES, made, 1}; }
    static Vectors by_channel(float* data, int first, int made) { return {data + first * made * LANES, 1, made}; }
    Vectors queries(float* data) const { return {data, length_, 1}; }
    Vectors by_key(float* data) const { return {data, 1, length_}; }

    const Call& call_;
    int length_, d_, e_, lanes_ = 0;
    int d_padded_, e_padded_;  // channels of a row of scratch: whole vectors
    int d_made_, e_made_;      // channels of a map turned over: as many as `transpose` makes
    int64_t image_ = 0, first_pair_ = 0;
    float *q_, *v_, *out_, *logits_, *rows_;  // `out_` holds the gradient of the outputs in the backward pass
    float *grad_q_, *grad_v_, *grad_logits_, *grad_table_, *q_rows_;
};

thread_local Scratch scratch;

int64_t units(const Call& call) { return call.batch * ((call.lines * call.heads + LANES - 1) / LANES); }

template <typename Number>
void run_forward(const Call& call) {
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        TinyIsZero tiny_is_zero;
        Worker<Number> worker(call);
        worker.prepare(scratch, false);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < units(call); unit++) worker.forward(unit);
    }
}

template <typename Number>
void run_backward(const Call& call) {
    int64_t numbers = (2 * call.length - 1) * call.d;
    std::vector<float> partial(units(call) * numbers);
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        TinyIsZero tiny_is_zero;
        Worker<Number> worker(call);
        worker.prepare(scratch, true);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < units(call); unit++) worker.backward(unit, partial.data() + unit * numbers);
        // One order of adding, whatever the number of threads.
#pragma omp for schedule(static)
        for (int64_t i = 0; i < numbers; i++)
            for (int64_t unit = 0; unit < units(call); unit++) call.grad_table[i] += partial[unit * numbers + i];
    }
}

}  // namespace
}  // namespace parhelion::axial

PARHELION_EXPORTS(axial)
