// Halo attention on a CPU, forward and backward (arXiv 2103.12731; see api.py for the contract).
//
// Work is cut into one window and one head. GROUP queries attend at once, one per lane of the vectors: scores are
// [key][lane], so the softmax needs no sums across lanes. Keys and values are read where they lie on the channels-last
// maps. Scores are made CHUNK keys at a time and forgotten; the backward pass makes those of a window anew.
#include "backward.h"
#include "export.h"
#include "forward.h"

namespace parhelion::halo {
namespace {

thread_local Scratch scratch;

// How many units a thread takes at once: all heads of a place, since they share cache lines, if there are places
// enough.
int64_t chunk_of(int64_t units, const Call& call) { return units / call.heads >= 2 * call.threads ? call.heads : 1; }

template <typename Number>
void run_forward(const Call& call) {
    Plan plan(call);
    PairTable table_h(call, plan, call.table_h, plan.d_h, true), table_w(call, plan, call.table_w, plan.d_w, false);
    int64_t units = call.batch * plan.blocks_h * plan.blocks_w * call.heads;
    int64_t chunk = chunk_of(units, call);
    auto place_of = [&](int64_t unit) -> Place {
        int64_t block = unit / call.heads, row = block / plan.blocks_w;
        return {row / plan.blocks_h, row % plan.blocks_h, block % plan.blocks_w, unit % call.heads};
    };
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        TinyIsZero tiny_is_zero;
        Forward<Number> forward(call, plan, table_h, table_w);
        forward.prepare(scratch);
#pragma omp for schedule(dynamic, chunk)
        for (int64_t unit = 0; unit < units; unit++) {
            // A guess at the end of a chunk: threads take chunks in turns.
            int64_t next = (unit + 1) % chunk ? unit + 1 : unit + 1 + (call.threads - 1) * chunk;
            forward.run(place_of(unit), place_of(std::min(next, units - 1)));
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
        TinyIsZero tiny_is_zero;
        Backward<Number> backward(call, plan, table_h, table_w);
        backward.prepare(scratch);
        for (int64_t kind = 0; kind < std::min<int64_t>(apart, plan.blocks_h); kind++) {
            int64_t rows = (plan.blocks_h - kind + apart - 1) / apart;
            int64_t units = call.batch * rows * call.heads, chunk = chunk_of(units, call);
#pragma omp for schedule(dynamic, chunk)
            for (int64_t task = 0; task < units; task++) {
                int64_t head = task % call.heads, row = kind + task / call.heads % rows * apart;
                int64_t image = task / call.heads / rows;
                backward.clear_tables();
                for (int64_t column = 0; column < plan.blocks_w; column++)
                    backward.run({image, row, column, head},
                                 {image, row, std::min<int64_t>(column + 1, plan.blocks_w - 1), head});
                if (!table_w) continue;
                int64_t index = (image * plan.blocks_h + row) * call.heads + head;
                float* to = partial.data() + index * (parts_h + parts_w);
                backward.write_tables(to, to + parts_h);
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

PARHELION_EXPORTS(halo)
