// 3 x 3 convolutions over all channels of pictures (C, H, W) as products with what each pixel sees.
#pragma once

#include "parts.h"

namespace {

struct Map {
  Index height, width, in, out, stride;
  Index rows() const { return (height - 1) / stride + 1; }
  Index columns() const { return (width - 1) / stride + 1; }
  Index pixels() const { return rows() * columns(); }
  Index seen() const { return 9 * in; }
  // Rows of the result that are computed together: what they see takes 4 MiB at most, or is one row.
  Index band() const {
    return std::min(rows(), std::max<Index>(1, (Index{1} << 20) / (seen() * columns())));
  }

  // Calls work(row of the picture or -1, first and last column of the result that see it by tap j,
  // place in `space` of the first column) for tap (i, j) of channel c and every row of a band.
  template <class Work> void each_row(Index c, Index first, Index last, const Work &work) const {
    for (Index i = 0; i < 3; ++i)
      for (Index j = 0; j < 3; ++j)
        for (Index r = first; r < last; ++r) {
          const Index row = r * stride + i - 1;
          const Index from = j == 0 ? 1 : 0, to = std::min(columns(), (width - j + stride) / stride);
          work(row < height ? row : -1, from, to, j - 1,
               ((c * 9 + 3 * i + j) * (last - first) + r - first) * columns());
        }
  }

  // space (9 C, rows of the band, columns)
  void gather(const float *picture, Index c, Index first, Index last, float *space) const {
    each_row(c, first, last, [&](Index row, Index from, Index to, Index shift, Index place) {
      float *into = space + place;
      std::fill_n(into, columns(), 0.0f);
      if (row < 0) return;
      const float *of = picture + (c * height + row) * width + shift;
      for (Index x = from; x < to; ++x) into[x] = of[x * stride];
    });
  }

  void scatter(const float *space, Index c, Index first, Index last, float *picture) const {
    each_row(c, first, last, [&](Index row, Index from, Index to, Index shift, Index place) {
      if (row < 0) return;
      float *into = picture + (c * height + row) * width + shift;
      for (Index x = from; x < to; ++x) into[x * stride] += space[place + x];
    });
  }
};

}  // namespace
