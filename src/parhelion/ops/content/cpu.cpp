// Content attention on a CPU, forward and backward (arXiv 2010.03019; see api.py for the contract).
//
// A unit of work is a group of heads of one image: its pixels pass through cache PIXELS at a time, as rows of channels,
// once to make the summary (with a softmax that is rescaled whenever a larger key turns up) and once to read it. Heads
// too narrow to fill a vector are grouped and treated as one head, in whose summary what one head would read of another
// is set to zero: that multiplies no more than vectors half empty, and reads whole cache lines.
#include <cmath>
#include <cstdint>

#include "export.h"
#include "scratch.h"
#include "tile.h"

namespace parhelion::content {

// Mirrors `_Call` in cpu.py. Strides are in numbers: images, pixels, heads.
struct Call {
    int64_t batch, pixels, heads, d, e, threads;
    int64_t q_strides[3], k_strides[3], v_strides[3];
    const void *q, *k, *v;
    void* out;          // contiguous, as all that follows
    float* summary;     // images x heads x d x e
    float* statistics;  // images x (largest key, 1 / sum) x heads x d
    const void* grad_out;
    void *grad_q, *grad_k, *grad_v;
};

namespace {

constexpr int PIXELS = 64;
constexpr int AHEAD = 32;  // pixels between the row that is read and the one that is asked for

// How many heads make a group.
int heads_per_group(const Call& call) {
    if (call.q_strides[2] != call.d || call.k_strides[2] != call.d || call.v_strides[2] != call.e) return 1;
    int heads = std::max<int64_t>(1, LANES / std::max(call.d, call.e));
    while (call.heads % heads) heads--;
    return heads;
}

template <typename Number>
class Worker {
 public:
    explicit Worker(const Call& call)
        : call_(call),
          group_(heads_per_group(call)),
          groups_(call.heads / group_),
          d_(call.d * group_),
          e_(call.e * group_) {
        d_padded_ = round_up(d_, LANES), e_padded_ = round_up(e_, LANES);
    }

    void prepare(Scratch& scratch) {
        size_t by_d = size_t(PIXELS) * d_padded_, by_e = size_t(PIXELS) * e_padded_;
        size_t square = size_t(d_padded_) * e_padded_;
        scratch.reserve(4 * by_d + 3 * by_e + 4 * square + 4 * d_padded_);
        for (float** piece : {&q_, &k_, &grad_q_, &grad_k_}) *piece = scratch.take(by_d);
        for (float** piece : {&v_, &g_, &result_}) *piece = scratch.take(by_e);
        for (float** piece : {&summary_, &grad_summary_, &turned_, &grad_turned_}) *piece = scratch.take(square);
        for (float** piece : {&largest_, &sum_, &shrink_, &delta_}) *piece = scratch.take(d_padded_);
    }

    void forward(int64_t unit) {
        unit_ = unit;
        summarise();
        save();
        for (int64_t first = 0; first < call_.pixels; first += PIXELS) {
            int count = enter(first);
            read(q_, call_.q, call_.q_strides, d_, d_padded_, count);
            multiply(result_, e_padded_, Strided{q_, d_padded_, 1}, summary_, e_padded_, count, e_padded_ / LANES, d_);
            write(call_.out, result_, e_, e_padded_, count);
        }
    }

    void backward(int64_t unit) {
        unit_ = unit;
        restore();
        differentiate_summary();
        for (int64_t first = 0; first < call_.pixels; first += PIXELS) {
            int count = enter(first);
            read_gradient(count);
            multiply(grad_q_, d_padded_, Strided{g_, e_padded_, 1}, turned_, d_padded_, count, d_padded_ / LANES, e_);
            write(call_.grad_q, grad_q_, d_, d_padded_, count);
            read(v_, call_.v, call_.v_strides, e_, e_padded_, count);
            multiply(grad_k_, d_padded_, Strided{v_, e_padded_, 1}, grad_turned_, d_padded_, count, d_padded_ / LANES,
                     e_);
            read(k_, call_.k, call_.k_strides, d_, d_padded_, count);
            differentiate_softmax(count);
            write(call_.grad_k, grad_k_, d_, d_padded_, count);
            multiply(result_, e_padded_, Strided{k_, d_padded_, 1}, grad_summary_, e_padded_, count, e_padded_ / LANES,
                     d_);
            write(call_.grad_v, result_, e_, e_padded_, count);
        }
    }

 private:
    int64_t image() const { return unit_ / groups_; }
    int64_t head() const { return unit_ % groups_ * group_; }

    int enter(int64_t first) {
        first_ = first;
        return std::min<int64_t>(PIXELS, call_.pixels - first);
    }

    void read(float* to, const void* from, const int64_t* strides, int channels, int padded, int count) const {
        const Number* row =
            static_cast<const Number*>(from) + image() * strides[0] + first_ * strides[1] + head() * strides[2];
        for (int pixel = 0; pixel < count; pixel++) {
            prefetch_row(row + (pixel + AHEAD) * strides[1], channels);
            read_row(to + pixel * padded, row + pixel * strides[1], channels, padded);
        }
    }

    int64_t at(int channels) const {
        return ((image() * call_.pixels + first_) * groups_ + unit_ % groups_) * channels;
    }

    void read_gradient(int count) const {
        const Number* row = static_cast<const Number*>(call_.grad_out) + at(e_);
        for (int pixel = 0; pixel < count; pixel++)
            read_row(g_ + pixel * e_padded_, row + pixel * groups_ * e_, e_, e_padded_);
    }

    void write(void* to, const float* from, int channels, int padded, int count) const {
        Number* row = static_cast<Number*>(to) + at(channels);
        for (int pixel = 0; pixel < count; pixel++)
            write_row(row + pixel * groups_ * channels, from + pixel * padded, channels);
    }

    void summarise() {
        std::fill_n(summary_, d_padded_ * e_padded_, 0.0f);
        std::fill_n(largest_, d_padded_, -INFINITY), std::fill_n(sum_, d_padded_, 0.0f);
        for (int64_t first = 0; first < call_.pixels; first += PIXELS) {
            int count = enter(first);
            read(k_, call_.k, call_.k_strides, d_, d_padded_, count);
            weigh(count);
            for (int c = 0; c < d_; c++)
                for (int n = 0; n < e_padded_; n += LANES) {
                    float* part = summary_ + c * e_padded_ + n;
                    store(part, load(part) * shrink_[c]);
                }
            read(v_, call_.v, call_.v_strides, e_, e_padded_, count);
            accumulate(summary_, e_padded_, Strided{k_, 1, d_padded_}, v_, e_padded_, d_, e_padded_ / LANES, count);
        }
        for (int c = 0; c < d_padded_; c++) sum_[c] = 1.0f / sum_[c];
        for (int c = 0; c < d_; c++)
            for (int n = 0; n < e_padded_; n += LANES) {
                float* part = summary_ + c * e_padded_ + n;
                store(part, load(part) * sum_[c]);
            }
        forget_other_heads(summary_);
    }

    void forget_other_heads(float* summary) const {
        for (int c = 0; c < d_; c++)
            for (int n = 0; n < e_; n++)
                if (c / call_.d != n / call_.e) summary[c * e_padded_ + n] = 0.0f;
    }

    // Turns the chunk's keys into weights of the softmax so far.
    void weigh(int count) {
        for (int n = 0; n < d_padded_; n += LANES) {
            Vec before = load(largest_ + n), largest = before, sum = load(sum_ + n);
            for (int pixel = 0; pixel < count; pixel++) largest = maximum(largest, load(k_ + pixel * d_padded_ + n));
            Vec shrink = exp_of_nonpositive(before - largest);
            float* keys = k_ + n;
            int pitch = d_padded_;
            sum = sum * shrink + sum_over(count, [=](int pixel) {
                      Vec weight = exp_of_nonpositive(load(keys + pixel * pitch) - largest);
                      store(keys + pixel * pitch, weight);
                      return weight;
                  });
            store(largest_ + n, largest), store(sum_ + n, sum), store(shrink_ + n, shrink);
        }
    }

    // What the row of a channel of k holds for its own head.
    float* own(float* summary, int c) const { return summary + c * e_padded_ + c / call_.d * call_.e; }

    float* saved(int c) const { return call_.summary + ((image() * call_.heads + head()) * call_.d + c) * call_.e; }

    float* saved_statistics(int which) const {
        return call_.statistics + ((image() * 2 + which) * call_.heads + head()) * call_.d;
    }

    void save() const {
        for (int c = 0; c < d_; c++) std::copy_n(own(summary_, c), call_.e, saved(c));
        std::copy_n(largest_, d_, saved_statistics(0));
        std::copy_n(sum_, d_, saved_statistics(1));
    }

    void restore() {
        std::fill_n(summary_, d_padded_ * e_padded_, 0.0f), std::fill_n(turned_, d_padded_ * e_padded_, 0.0f);
        for (int c = 0; c < d_; c++) {
            std::copy_n(saved(c), call_.e, own(summary_, c));
            for (int n = 0; n < e_; n++) turned_[n * d_padded_ + c] = summary_[c * e_padded_ + n];
        }
        read_row(largest_, saved_statistics(0), d_, d_padded_);
        read_row(sum_, saved_statistics(1), d_, d_padded_);
    }

    void differentiate_summary() {
        std::fill_n(grad_summary_, d_padded_ * e_padded_, 0.0f);
        for (int64_t first = 0; first < call_.pixels; first += PIXELS) {
            int count = enter(first);
            read(q_, call_.q, call_.q_strides, d_, d_padded_, count);
            read_gradient(count);
            accumulate(grad_summary_, e_padded_, Strided{q_, 1, d_padded_}, g_, e_padded_, d_, e_padded_ / LANES,
                       count);
        }
        forget_other_heads(grad_summary_);
        std::fill_n(grad_turned_, d_padded_ * e_padded_, 0.0f);
        std::fill_n(delta_, d_padded_, 0.0f);
        for (int c = 0; c < d_; c++)
            for (int n = 0; n < e_; n++) {
                float gradient = grad_summary_[c * e_padded_ + n];
                grad_turned_[n * d_padded_ + c] = gradient;
                delta_[c] += gradient * summary_[c * e_padded_ + n];
            }
    }

    // k_ become the weights of the softmax, grad_k_, so far the gradients of the weights, those of the keys.
    void differentiate_softmax(int count) {
        for (int n = 0; n < d_padded_; n += LANES) {
            Vec largest = load(largest_ + n), share = load(sum_ + n), delta = load(delta_ + n);
            for (int pixel = 0; pixel < count; pixel++) {
                float *key = k_ + pixel * d_padded_ + n, *gradient = grad_k_ + pixel * d_padded_ + n;
                Vec weight = exp_of_nonpositive(load(key) - largest) * share;
                store(key, weight);
                store(gradient, weight * (load(gradient) - delta));
            }
        }
    }

    const Call& call_;
    int group_, groups_;               // heads in a group, groups in an image
    int d_, e_, d_padded_, e_padded_;  // channels of a group
    int64_t unit_ = 0, first_ = 0;
    float *q_, *k_, *v_, *g_, *grad_q_, *grad_k_, *result_;  // [pixel][channel]
    float *summary_, *grad_summary_;                         // [channel of k][channel of v]
    float *turned_, *grad_turned_;                           // [channel of v][channel of k]
    float *largest_, *sum_, *shrink_, *delta_;               // [channel of k]
};

thread_local Scratch scratch;

template <typename Number, typename F>
void each_unit(const Call& call, F&& f) {
    // Groups of an image share cache lines, so one thread takes them all if there are images enough.
    int64_t groups = call.heads / heads_per_group(call), chunk = call.batch >= 2 * call.threads ? groups : 1;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        TinyIsZero tiny_is_zero;
        Worker<Number> worker(call);
        worker.prepare(scratch);
#pragma omp for schedule(dynamic, chunk)
        for (int64_t unit = 0; unit < call.batch * groups; unit++) f(worker, unit);
    }
}

template <typename Number>
void run_forward(const Call& call) {
    each_unit<Number>(call, [](auto& worker, int64_t unit) { worker.forward(unit); });
}

template <typename Number>
void run_backward(const Call& call) {
    each_unit<Number>(call, [](auto& worker, int64_t unit) { worker.backward(unit); });
}

}  // namespace
}  // namespace parhelion::content

PARHELION_EXPORTS(content)
