// Checks one compiled library of kernels against plain loops in float64: self_check LIBRARY.
//
// It needs neither torch nor Python, so that it runs where only an emulator does. Exits 0 if all is right, 1 with a
// sentence for everything that is wrong, 2 if the library cannot be loaded, 4 if this processor cannot run it.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

// For `Call` of each operation; the kernels that run are those of the library.
#include "parhelion/ops/axial/cpu.cpp"
#undef EXPORT
#include "parhelion/ops/content/cpu.cpp"
#undef EXPORT
#include "parhelion/ops/halo/cpu.cpp"

namespace {

using parhelion::bfloat16;
using Reals = std::vector<double>;

void* library;
int failures = 0;

template <typename Call>
void run(const std::string& function, const Call& call) {
    void* symbol = dlsym(library, ("parhelion_" + function).c_str());
    if (!symbol) {
        std::printf("the library has no parhelion_%s\n", function.c_str());
        std::exit(1);
    }
    reinterpret_cast<void (*)(const Call*)>(symbol)(&call);
}

// What depends on the dtype of the maps: its name, one rounding, and the tolerance, a few roundings of the largest.
template <typename Number>
struct Dtype;
template <>
struct Dtype<float> {
    static constexpr const char* name = "float32";
    static constexpr double tolerance = 1e-5;
    static float rounded(double value) { return float(value); }
};
template <>
struct Dtype<bfloat16> {
    static constexpr const char* name = "bfloat16";
    static constexpr double tolerance = 2e-2;
    static bfloat16 rounded(double value) {
        float single = float(value);
        uint32_t bits;
        std::memcpy(&bits, &single, sizeof bits);
        return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
    }
};

double uniform() {  // in [-1, 1), the same numbers on every machine
    static uint64_t state = 20103019;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double(state >> 40) / (1 << 23) - 1;
}

// Random numbers as a kernel reads them and as the loops do.
template <typename Number>
struct Map {
    std::vector<Number> stored;
    Reals exact;

    explicit Map(int64_t size) {
        for (int64_t i = 0; i < size; i++) {
            stored.push_back(Dtype<Number>::rounded(2 * uniform()));
            exact.push_back(parhelion::to_float(stored.back()));
        }
    }
};

template <typename Number>
std::vector<Number> poisoned(int64_t size) {
    return std::vector<Number>(size, Dtype<Number>::rounded(NAN));
}

// `Number` is the dtype of the maps; sums over windows and lines come in float32.
template <typename Number, typename Result>
void compare(const std::string& what, const std::vector<Result>& actual, const Reals& truth) {
    double largest = 0;
    for (double value : truth) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < truth.size(); i++) {
        double error = std::abs(parhelion::to_float(actual[i]) - truth[i]);
        if (error <= Dtype<Number>::tolerance * largest) continue;  // not-a-number is no such error
        failures++;
        std::printf("%s errs by %.3g where the largest number is %.3g\n", what.c_str(), error, largest);
        return;
    }
}

void set(int64_t* strides, std::initializer_list<int64_t> values) { std::copy(values.begin(), values.end(), strides); }

// Halo attention

struct Sizes {
    int64_t batch, h, w, heads, d, e, block, halo, stride;
    bool masked, summed, tables;

    int64_t query_h() const { return (h + stride - 1) / stride; }
    int64_t query_w() const { return (w + stride - 1) / stride; }
    int64_t d_h() const { return summed ? d : d / 2; }
    int64_t d_w() const { return summed ? d : d - d / 2; }
    int64_t first_w() const { return summed ? 0 : d / 2; }
    int64_t rows() const { return 2 * block + 2 * halo - 1; }
    int64_t queries() const { return batch * query_h() * query_w() * heads; }
    int64_t keys() const { return batch * h * w * heads; }
};

constexpr double SCALE = 0.75;

struct HaloInputs {
    const Reals &q, &k, &v, &g, &table_h, &table_w;
};

// The equation and its derivative, one query at a time.
struct HaloLoops {
    const Sizes& s;
    const HaloInputs& in;
    Reals out, q, k, v, table_h, table_w;  // the output and the gradients

    HaloLoops(const Sizes& s, const HaloInputs& in)
        : s(s),
          in(in),
          out(in.g.size()),
          q(in.q.size()),
          k(in.k.size()),
          v(in.v.size()),
          table_h(in.table_h.size()),
          table_w(in.table_w.size()) {
        for (int64_t query = 0; query < s.queries(); query++) {
            std::vector<Pair> pairs = attend(query);
            differentiate(query, pairs);
        }
    }

 private:
    struct Pair {
        int64_t key, at_h, at_w;  // key: -1 outside the image; numbers before the rows of the tables
        double weight, slope;
    };

    std::vector<Pair> attend(int64_t query) {
        int64_t head = query % s.heads, pixel = query / s.heads, per_axis = s.block / s.stride;
        int64_t x = pixel % s.query_w(), y = pixel / s.query_w() % s.query_h();
        int64_t image = pixel / s.query_w() / s.query_h();
        std::vector<Pair> pairs;
        for (int64_t a = 0; a < s.block + 2 * s.halo; a++)
            for (int64_t c = 0; c < s.block + 2 * s.halo; c++) {
                int64_t row = y / per_axis * s.block - s.halo + a, column = x / per_axis * s.block - s.halo + c;
                bool inside = row >= 0 && row < s.h && column >= 0 && column < s.w;
                if (!inside && s.masked) continue;
                int64_t key = inside ? ((image * s.h + row) * s.w + column) * s.heads + head : -1;
                int64_t row_h = a - s.stride * (y % per_axis) + s.block - 1;
                int64_t row_w = c - s.stride * (x % per_axis) + s.block - 1;
                pairs.push_back({key, row_h * s.d_h(), row_w * s.d_w(), 0, 0});
                pairs.back().weight = SCALE * logit(query, pairs.back());
            }
        double largest = -INFINITY, sum = 0;
        for (Pair& pair : pairs) largest = std::max(largest, pair.weight);
        for (Pair& pair : pairs) sum += pair.weight = std::exp(pair.weight - largest);
        for (Pair& pair : pairs) pair.weight /= sum;
        return pairs;
    }

    double logit(int64_t query, const Pair& pair) const {
        const double *q = &in.q[query * s.d], *q_w = q + s.first_w();
        double sum = 0;
        for (int64_t c = 0; c < s.d && pair.key >= 0; c++) sum += q[c] * in.k[pair.key * s.d + c];
        for (int64_t c = 0; c < s.d_h() && s.tables; c++) sum += q[c] * in.table_h[pair.at_h + c];
        for (int64_t c = 0; c < s.d_w() && s.tables; c++) sum += q_w[c] * in.table_w[pair.at_w + c];
        return sum;
    }

    void differentiate(int64_t query, std::vector<Pair>& pairs) {
        double delta = 0;
        for (Pair& pair : pairs) {
            for (int64_t c = 0; c < s.e && pair.key >= 0; c++) {
                out[query * s.e + c] += pair.weight * in.v[pair.key * s.e + c];
                v[pair.key * s.e + c] += pair.weight * in.g[query * s.e + c];
                pair.slope += in.g[query * s.e + c] * in.v[pair.key * s.e + c];
            }
            delta += pair.weight * pair.slope;
        }
        int64_t at = query * s.d, at_w = at + s.first_w();
        for (const Pair& pair : pairs) {
            double slope = SCALE * pair.weight * (pair.slope - delta);
            for (int64_t c = 0; c < s.d && pair.key >= 0; c++) {
                q[at + c] += slope * in.k[pair.key * s.d + c];
                k[pair.key * s.d + c] += slope * in.q[at + c];
            }
            for (int64_t c = 0; c < s.d_h() && s.tables; c++) {
                q[at + c] += slope * in.table_h[pair.at_h + c];
                table_h[pair.at_h + c] += slope * in.q[at + c];
            }
            for (int64_t c = 0; c < s.d_w() && s.tables; c++) {
                q[at_w + c] += slope * in.table_w[pair.at_w + c];
                table_w[pair.at_w + c] += slope * in.q[at_w + c];
            }
        }
    }
};

template <typename Number>
void check_halo(const std::string& name, const Sizes& s, int64_t threads) {
    int64_t n = s.heads, image = s.h * s.w * n, query_image = s.query_h() * s.query_w() * n;
    Map<Number> q(s.queries() * s.d), k(s.keys() * s.d), v(s.keys() * s.e), g(s.queries() * s.e);
    Map<float> table_h(s.tables * s.rows() * s.d_h()), table_w(s.tables * s.rows() * s.d_w());
    auto out = poisoned<Number>(s.queries() * s.e), grad_q = poisoned<Number>(s.queries() * s.d);
    auto statistics = poisoned<float>(2 * s.queries());
    std::vector<float> grad_k(s.keys() * s.d), grad_v(s.keys() * s.e);
    std::vector<float> grad_h(table_h.exact.size()), grad_w(table_w.exact.size());
    parhelion::halo::Call call{};
    call.batch = s.batch, call.h = s.h, call.w = s.w, call.query_h = s.query_h(), call.query_w = s.query_w();
    call.heads = n, call.d = s.d, call.e = s.e, call.block = s.block, call.halo = s.halo;
    call.stride = call.step = s.stride, call.masked = s.masked, call.summed = s.summed;
    call.threads = threads, call.scale = float(SCALE);
    set(call.q_strides, {query_image * s.d, s.query_w() * n * s.d, n * s.d, s.d});
    set(call.k_strides, {image * s.d, s.w * n * s.d, n * s.d, s.d});
    set(call.v_strides, {image * s.e, s.w * n * s.e, n * s.e, s.e});
    call.q = q.stored.data(), call.k = k.stored.data(), call.v = v.stored.data(), call.out = out.data();
    call.table_h = s.tables ? table_h.stored.data() : nullptr;
    call.table_w = s.tables ? table_w.stored.data() : nullptr;
    call.statistics = statistics.data(), call.grad_out = g.stored.data();
    call.grad_q = grad_q.data(), call.grad_k = grad_k.data(), call.grad_v = grad_v.data();
    call.grad_table_h = grad_h.data(), call.grad_table_w = grad_w.data();
    run(std::string("halo_forward_") + Dtype<Number>::name, call);
    run(std::string("halo_backward_") + Dtype<Number>::name, call);
    HaloLoops truth(s, {q.exact, k.exact, v.exact, g.exact, table_h.exact, table_w.exact});
    std::string title = "halo, " + name + ", " + Dtype<Number>::name + ": ";
    compare<Number>(title + "the output", out, truth.out);
    compare<Number>(title + "the gradient of q", grad_q, truth.q);
    compare<Number>(title + "the gradient of k", grad_k, truth.k);
    compare<Number>(title + "the gradient of v", grad_v, truth.v);
    compare<Number>(title + "the gradient of table_h", grad_h, truth.table_h);
    compare<Number>(title + "the gradient of table_w", grad_w, truth.table_w);
}

// Axial attention, along columns

template <typename Number>
void check_axial(int64_t batch, int64_t length, int64_t lines, int64_t n, int64_t d, int64_t e, int64_t threads) {
    int64_t pixels = batch * length * lines * n;
    Map<Number> q(pixels * d), v(pixels * e), g(pixels * e);
    Map<float> table((2 * length - 1) * d);
    auto out = poisoned<Number>(pixels * e), grad_v = poisoned<Number>(pixels * e);
    auto grad_q = poisoned<Number>(pixels * d);
    std::vector<float> grad_table(table.exact.size());
    parhelion::axial::Call call{};
    call.batch = batch, call.length = length, call.lines = lines, call.heads = n, call.d = d, call.e = e;
    call.threads = threads;
    set(call.q_strides, {length * lines * n * d, lines * n * d, n * d, d});
    set(call.v_strides, {length * lines * n * e, lines * n * e, n * e, e});
    set(call.out_strides, {length * lines * n * e, lines * n * e, n * e, e});
    set(call.grad_q_strides, {length * lines * n * d, lines * n * d, n * d, d});
    call.q = q.stored.data(), call.v = v.stored.data(), call.table = table.stored.data(), call.out = out.data();
    call.grad_out = g.stored.data(), call.grad_q = grad_q.data(), call.grad_v = grad_v.data();
    call.grad_table = grad_table.data();
    run(std::string("axial_forward_") + Dtype<Number>::name, call);
    run(std::string("axial_backward_") + Dtype<Number>::name, call);

    Reals truth(pixels * e), truth_q(pixels * d), truth_v(pixels * e), truth_table(table.exact.size());
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
        int64_t here = pixel / (lines * n) % length, line = pixel - here * lines * n;
        for (int64_t there = 0; there < length; there++) {
            int64_t other = line + there * lines * n, row = there - here + length - 1;
            double logit = 0, slope = 0;
            for (int64_t c = 0; c < d; c++) logit += q.exact[pixel * d + c] * table.exact[row * d + c];
            for (int64_t c = 0; c < e; c++) {
                truth[pixel * e + c] += logit * v.exact[other * e + c];
                truth_v[other * e + c] += logit * g.exact[pixel * e + c];
                slope += g.exact[pixel * e + c] * v.exact[other * e + c];
            }
            for (int64_t c = 0; c < d; c++) {
                truth_q[pixel * d + c] += slope * table.exact[row * d + c];
                truth_table[row * d + c] += slope * q.exact[pixel * d + c];
            }
        }
    }
    std::string title = "axial, " + std::to_string(length) + " pixels, " + Dtype<Number>::name + ": ";
    compare<Number>(title + "the output", out, truth);
    compare<Number>(title + "the gradient of q", grad_q, truth_q);
    compare<Number>(title + "the gradient of v", grad_v, truth_v);
    compare<Number>(title + "the gradient of the table", grad_table, truth_table);
}

// Content attention

template <typename Number>
void check_content(int64_t batch, int64_t pixels, int64_t n, int64_t d, int64_t e, int64_t threads) {
    int64_t all = batch * pixels * n;
    Map<Number> q(all * d), k(all * d), v(all * e), g(all * e);
    auto out = poisoned<Number>(all * e), grad_v = poisoned<Number>(all * e);
    auto grad_q = poisoned<Number>(all * d), grad_k = poisoned<Number>(all * d);
    std::vector<float> summary = poisoned<float>(batch * n * d * e), statistics = poisoned<float>(batch * n * 2 * d);
    parhelion::content::Call call{};
    call.batch = batch, call.pixels = pixels, call.heads = n, call.d = d, call.e = e, call.threads = threads;
    set(call.q_strides, {pixels * n * d, n * d, d});
    set(call.k_strides, {pixels * n * d, n * d, d});
    set(call.v_strides, {pixels * n * e, n * e, e});
    call.q = q.stored.data(), call.k = k.stored.data(), call.v = v.stored.data(), call.out = out.data();
    call.summary = summary.data(), call.statistics = statistics.data(), call.grad_out = g.stored.data();
    call.grad_q = grad_q.data(), call.grad_k = grad_k.data(), call.grad_v = grad_v.data();
    run(std::string("content_forward_") + Dtype<Number>::name, call);
    run(std::string("content_backward_") + Dtype<Number>::name, call);

    Reals truth(all * e), truth_q(all * d), truth_k(all * d), truth_v(all * e);
    for (int64_t part = 0; part < batch * n * d; part++) {
        int64_t image = part / d / n, head = part / d % n, c = part % d;
        auto at = [&](int64_t pixel) { return (image * pixels + pixel) * n + head; };
        Reals weights, summary(e), grad_summary(e);
        double sum = 0, delta = 0;
        for (int64_t p = 0; p < pixels; p++) weights.push_back(std::exp(k.exact[at(p) * d + c])), sum += weights[p];
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t i = 0; i < e; i++) {
                summary[i] += weights[p] / sum * v.exact[at(p) * e + i];
                grad_summary[i] += q.exact[at(p) * d + c] * g.exact[at(p) * e + i];
            }
        for (int64_t i = 0; i < e; i++) delta += summary[i] * grad_summary[i];
        for (int64_t p = 0; p < pixels; p++) {
            double slope = 0;
            for (int64_t i = 0; i < e; i++) {
                truth[at(p) * e + i] += q.exact[at(p) * d + c] * summary[i];
                truth_q[at(p) * d + c] += g.exact[at(p) * e + i] * summary[i];
                truth_v[at(p) * e + i] += weights[p] / sum * grad_summary[i];
                slope += grad_summary[i] * v.exact[at(p) * e + i];
            }
            truth_k[at(p) * d + c] = weights[p] / sum * (slope - delta);
        }
    }
    std::string title = "content, " + std::to_string(pixels) + " pixels, " + Dtype<Number>::name + ": ";
    compare<Number>(title + "the output", out, truth);
    compare<Number>(title + "the gradient of q", grad_q, truth_q);
    compare<Number>(title + "the gradient of k", grad_k, truth_k);
    compare<Number>(title + "the gradient of v", grad_v, truth_v);
}

template <typename Number>
void check_all(int64_t threads) {
    // batch, h, w, heads, d, e, block, halo, stride, masked, summed, tables
    check_halo<Number>("zeros at the border", {2, 7, 10, 3, 5, 9, 4, 1, 1, false, false, true}, threads);
    check_halo<Number>("masked, summed, strided", {1, 9, 11, 2, 16, 20, 4, 3, 2, true, true, true}, threads);
    check_halo<Number>("large windows", {1, 13, 15, 1, 33, 8, 10, 2, 1, false, false, true}, threads);
    check_halo<Number>("no tables", {3, 1, 9, 2, 1, 3, 2, 3, 1, false, false, false}, threads);
    check_axial<Number>(2, 6, 7, 3, 5, 9, threads);
    check_axial<Number>(1, 13, 4, 1, 17, 33, threads);
    check_axial<Number>(3, 1, 5, 2, 1, 2, threads);
    check_content<Number>(2, 70, 3, 5, 9, threads);
    check_content<Number>(1, 131, 2, 33, 17, threads);
    check_content<Number>(3, 1, 1, 1, 2, threads);
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2 || !(library = dlopen(arguments[1], RTLD_NOW))) {
        std::printf("usage: self_check LIBRARY; %s\n", count == 2 ? dlerror() : "no library was named");
        return 2;
    }
    void* runs_here = dlsym(library, "parhelion_runs_here");
    if (!runs_here || !reinterpret_cast<int (*)()>(runs_here)()) {
        std::printf("this processor lacks the instructions of %s\n", arguments[1]);
        return 4;
    }
    for (int64_t threads : {1, 2}) {
        check_all<float>(threads);
        check_all<bfloat16>(threads);
    }
    if (!failures) std::printf("%s: as exact as it should be\n", arguments[1]);
    return failures ? 1 : 0;
}
