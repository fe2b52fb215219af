// flowood.h inside a C++11 program: its memory comes from the program's own allocator, its errors
// become exceptions, and a flow is scored from several threads, each with a context of its own.
// Build: c++ -std=c++11 -O2 -I. examples/embed.cpp -lm -pthread
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"

struct Pool { // an allocator with a limit and a count
    size_t used = 0, limit = 0;

    static void *resize(void *user, void *ptr, size_t old_size, size_t new_size) {
        Pool *pool = static_cast<Pool *>(user);
        if (new_size == 0) {
            pool->used -= old_size;
            std::free(ptr);
            return nullptr;
        }
        if (pool->used - old_size + new_size > pool->limit)
            return nullptr; // the library reports FO_ERR_MEMORY
        void *result = std::realloc(ptr, new_size);
        if (result)
            pool->used += new_size - old_size;
        return result;
    }
};

struct Close { void operator()(fo_context *fo) const { fo_close(fo); } };
using Context = std::unique_ptr<fo_context, Close>;

static Context open(Pool *pool) {
    fo_desc desc = fo_desc();
    desc.threads    = 1;
    desc.realloc_fn = Pool::resize;
    desc.user       = pool;
    return Context(fo_open(&desc));
}

static void check(const Context &fo) {
    if (fo_failed(fo.get()))
        throw std::runtime_error(fo_error(fo.get()));
}

int main() {
    Pool pool;
    pool.limit = 64 << 20;
    try {
        Context            fo = open(&pool);
        const int          n = 4096, d = 4;
        std::vector<float> rows(n * d);
        for (int i = 0; i < n * d; i++)
            rows[i] = static_cast<float>(i % d) + static_cast<float>(i * 7919 % 1000) / 1000;
        fo_shape shape = {d, 1, 1};
        fo_data *data  = fo_data_view(fo.get(), rows.data(), FO_F32, n, shape);
        fo_flow *flow  = fo_flow_preset(fo.get(), "tabular", shape);
        fo_train_desc desc = fo_train_desc();
        desc.steps = 100;
        fo_train(flow, data, &desc);
        check(fo);

        std::vector<double>      score(n);
        std::vector<std::thread> threads;
        std::vector<Pool>        pools(2);
        std::vector<std::string> errors(2);
        for (int t = 0; t < 2; t++)
            threads.emplace_back([&, t] {
                pools[t].limit = 16 << 20;
                Context       mine = open(&pools[t]);
                fo_workspace *ws   = fo_workspace_create(mine.get(), flow, 128);
                fo_log_prob(ws, data, t * n / 2, n / 2, 0, &score[t * n / 2]);
                errors[t] = fo_error(mine.get());
            });
        for (std::thread &thread : threads)
            thread.join();
        for (const std::string &error : errors)
            if (!error.empty())
                throw std::runtime_error(error);
        double sum = 0;
        for (double s : score)
            sum += s;
        std::printf("mean log_prob %.3f nats, %zu bytes in use\n", sum / n, pool.used);

        Pool tiny; // out of memory is an error like any other
        tiny.limit = 100000;
        Context small = open(&tiny);
        fo_workspace_create(small.get(), flow, 4096);
        std::printf("in a small pool: %s\n", fo_error(small.get()));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "embed: %s\n", error.what());
        return 1;
    }
    std::printf("left after closing: %zu bytes\n", pool.used);
    return pool.used != 0;
}
