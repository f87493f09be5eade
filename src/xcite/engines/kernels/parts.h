// Threads, parts of work for them, and sums of parts.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace {

using Index = std::int64_t;
using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
using SetThreads = void (*)(int);
// C (m x n) = alpha A (m x k) B (k x n) + beta C, row by row, with A or B turned by 'T'
using Product = int (*)(char, char, Index, Index, Index, float, const float *, Index, const float *,
                        Index, float, float *, Index);

Parallel parallel;
SetThreads set_threads;
Product product;

// Calls work(part) for every part; whichever thread is free takes the next.
template <class Work> void each(int threads, Index parts, const Work &work) {
  struct Shared {
    const Work &work;
    std::atomic<Index> next;
    Index parts;
  } shared{work, {0}, parts};
  auto turn = [](void *given) {
    auto *mine = static_cast<Shared *>(given);
    for (Index part; (part = mine->next++) < mine->parts;) mine->work(part);
  };
  const auto team = static_cast<unsigned>(std::min<Index>(threads, parts));
  if (team > 1)
    parallel(turn, &shared, team, 0);
  else
    turn(&shared);
}

// Rows in parts: at most 256, of at least 32.
struct Rows {
  Index rows, size, parts;
  explicit Rows(Index count)
      : rows(count), size(std::max<Index>(32, (count + 255) / 256)),
        parts((count + size - 1) / size) {}
  Index begin(Index part) const { return part * size; }
  Index end(Index part) const { return std::min(rows, (part + 1) * size); }
};

// Calls work(begin, end) for parts of so many numbers.
template <class Work> void each_span(int threads, Index count, const Work &work) {
  const Rows rows((count + 255) / 256);
  each(threads, rows.parts, [&](Index part) {
    work(rows.begin(part) * 256, std::min(count, rows.end(part) * 256));
  });
}

// Sums of parts, in their order: to[i] = sum over p of from[p * stride + i]
void add_up(const float *from, Index parts, Index stride, Index count, float *to) {
  std::vector<double> sums(count, 0.0);
  for (Index p = 0; p < parts; ++p)
    for (Index i = 0; i < count; ++i) sums[i] += from[p * stride + i];
  for (Index i = 0; i < count; ++i) to[i] = static_cast<float>(sums[i]);
}

}  // namespace
