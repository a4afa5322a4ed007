#include "table.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace blockzo {
namespace {

struct Entry {
    const KernelTable* table;
    bool (*runs_here)();
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && has_f16c();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

// From the plainest to the best.
const std::vector<Entry>& entries() {
    static const std::vector<Entry> all = {
        {baseline_kernels, always}, {neon_kernels, always}, {avx2_kernels, has_avx2}, {avx512_kernels, has_avx512}};
    return all;
}

const KernelTable* best() {
    const KernelTable* found = nullptr;
    for (const Entry& entry : entries()) {
        if (entry.table != nullptr && entry.runs_here()) found = entry.table;
    }
    return found;
}

std::atomic<const KernelTable*>& current() {
    static std::atomic<const KernelTable*> table{best()};
    return table;
}

std::string listed(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

}  // namespace

const KernelTable& kernels() { return *current().load(); }

std::vector<std::string> compiled() {
    std::vector<std::string> names;
    for (const Entry& entry : entries()) {
        if (entry.table != nullptr) names.emplace_back(entry.table->name);
    }
    return names;
}

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const Entry& entry : entries()) {
        if (entry.table != nullptr && entry.runs_here()) names.emplace_back(entry.table->name);
    }
    return names;
}

std::string chosen() { return kernels().name; }

void choose(const std::string& name) {
    for (const Entry& entry : entries()) {
        if (entry.table != nullptr && name == entry.table->name && entry.runs_here()) {
            current().store(entry.table);
            return;
        }
    }
    throw std::invalid_argument("instruction set '" + name + "' is not available: this build holds " + listed(compiled()) +
                                ", this CPU runs " + listed(available()) + "; choose one of the latter or unset BLOCKZO_ISA");
}

}  // namespace blockzo
