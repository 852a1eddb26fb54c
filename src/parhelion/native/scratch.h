// Memory of a thread that outlives a call, so that kernels do not pay for fresh pages each time.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace parhelion {

class Scratch {
 public:
    ~Scratch() { std::free(memory_); }

    // Forgets what was handed out and makes room for `floats` numbers in all, in pieces aligned to 64 bytes.
    void reserve(size_t floats) {
        size_t bytes = (floats * sizeof(float) + 4096) / 64 * 64;
        if (bytes > size_) {
            std::free(memory_);
            memory_ = std::aligned_alloc(64, bytes);
            size_ = memory_ ? bytes : 0;
            if (!memory_) throw std::bad_alloc();
        }
        used_ = 0;
    }

    // The next `floats` numbers; their content is whatever was there.
    float* take(size_t floats) {
        float* piece = static_cast<float*>(memory_) + used_;
        used_ += (floats + 15) / 16 * 16;
        return piece;
    }

 private:
    void* memory_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

}  // namespace parhelion
