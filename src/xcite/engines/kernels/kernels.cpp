// What the frameworks compute slowly on a CPU: LayerNorm, local patch interaction, GELU and MLP of
// float32, and their gradients. Arrays are dense, tokens (B, N, C) with the channels last.
//
// Plain C++17 without any library: threads and matrix products are the framework's own, handed in
// by `attach`, so that no second set of threads competes with the first. Sums over tokens are made of
// parts whose bounds depend on the shape alone: they are the same for any count of threads.

#include <atomic>
#include <cmath>
#include <vector>

#include "attention.h"
#include "columns.h"
#include "convolution.h"
#include "gelu.h"
#include "parts.h"

extern "C" {

void attach(Parallel run, SetThreads count, Product products) {
  parallel = run;
  set_threads = count;
  product = products;
}

void gelu(int threads, Index count, const float *x, float *y) {
  each_span(threads, count, [&](Index begin, Index end) {
#pragma omp simd
    for (Index i = begin; i < end; ++i) y[i] = x[i] * cdf(x[i]);
  });
}

void gelu_back(int threads, Index count, const float *x, const float *grad, float *grad_x) {
  each_span(threads, count, [&](Index begin, Index end) {
#pragma omp simd
    for (Index i = begin; i < end; ++i) grad_x[i] = grad[i] * (cdf(x[i]) + x[i] * pdf(x[i]));
  });
}

// mean and inverse: of the rows, for the gradient
void layer_norm(int threads, Index count, Index width, float epsilon, const float *x,
                const float *weight, const float *bias, float *y, float *mean, float *inverse) {
  const Rows rows(count);
  each(threads, rows.parts, [&](Index part) {
    for (Index r = rows.begin(part); r < rows.end(part); ++r) {
      const float *from = x + r * width;
      float *to = y + r * width;
      float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (Index c = 0; c < width; ++c) sum += from[c];
      const float middle = sum / width;
#pragma omp simd reduction(+ : squares)
      for (Index c = 0; c < width; ++c) squares += (from[c] - middle) * (from[c] - middle);
      const float scale = 1.0f / std::sqrt(squares / width + epsilon);
#pragma omp simd
      for (Index c = 0; c < width; ++c) to[c] = (from[c] - middle) * scale * weight[c] + bias[c];
      mean[r] = middle;
      inverse[r] = scale;
    }
  });
}

// residual: what is added to grad_x, if anything
void layer_norm_back(int threads, Index count, Index width, const float *x, const float *weight,
                     const float *mean, const float *inverse, const float *grad,
                     const float *residual, float *grad_x, float *grad_weight, float *grad_bias) {
  const Rows rows(count);
  const std::vector<float> zeros(width, 0.0f);
  std::vector<float> sums(rows.parts * 2 * width, 0.0f);
  each(threads, rows.parts, [&](Index part) {
    float *by_weight = sums.data() + part * 2 * width, *by_bias = by_weight + width;
    for (Index r = rows.begin(part); r < rows.end(part); ++r) {
      const float *from = x + r * width, *g = grad + r * width;
      const float *more = residual ? residual + r * width : zeros.data();
      float *to = grad_x + r * width;
      const float middle = mean[r], scale = inverse[r];
      float all = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : all, along)
      for (Index c = 0; c < width; ++c) {
        const float hat = (from[c] - middle) * scale, part_of = g[c] * weight[c];
        all += part_of;
        along += part_of * hat;
        by_weight[c] += g[c] * hat;
        by_bias[c] += g[c];
      }
      all /= width;
      along /= width;
#pragma omp simd
      for (Index c = 0; c < width; ++c)
        to[c] = more[c] + scale * (g[c] * weight[c] - all - (from[c] - middle) * scale * along);
    }
  });
  add_up(sums.data(), rows.parts, 2 * width, width, grad_weight);
  add_up(sums.data() + width, rows.parts, 2 * width, width, grad_bias);
}

// y = conv2(norm(gelu(conv1 x))); hidden = conv1 x. With `batch`, mean and variance (biased) are
// those of the batch and are written; else they are given.
void local(int threads, Index pictures, Index height, Index width, Index channels, int batch,
           float epsilon, const float *x, const float *weight1, const float *bias1,
           const float *norm_weight, const float *norm_bias, const float *weight2,
           const float *bias2, float *hidden, float *mean, float *variance, float *y) {
  const Grid grid{pictures, height, width, channels};
  const std::vector<float> taps1 = by_tap(weight1, channels), taps2 = by_tap(weight2, channels);
  const std::vector<float> zeros(channels, 0.0f);
  const Index row = grid.row();
  std::vector<Moments> moments(batch ? grid.parts() : 0, Moments(channels));
  each(threads, grid.parts(), [&](Index part) {
    const Band band(grid, part);
    std::vector<float> activated(batch ? row : 0), sums(channels), squares(channels);
    for (Index r = band.first; r < band.last; ++r) {
      const float *here = x + band.start + r * row;
      const float *rows[3] = {r > 0 ? here - row : nullptr, here,
                              r + 1 < height ? here + row : nullptr};
      float *to = hidden + band.start + r * row;
      convolve_row(rows, zeros.data(), grid, taps1.data(), bias1, to);
      if (!batch) continue;
#pragma omp simd
      for (Index i = 0; i < row; ++i) activated[i] = to[i] * cdf(to[i]);
      std::fill(sums.begin(), sums.end(), 0.0f);
      std::fill(squares.begin(), squares.end(), 0.0f);
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c) sums[c] += activated[i + c];
      for (Index c = 0; c < channels; ++c) sums[c] /= width;
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c) {
          const float distance = activated[i + c] - sums[c];
          squares[c] += distance * distance;
        }
      moments[part].add(static_cast<double>(width), sums, squares);
    }
  });
  if (batch) {
    Moments total(channels);
    for (const Moments &one : moments) total.add(one.count, one.mean, one.squares);
    for (Index c = 0; c < channels; ++c) {
      mean[c] = static_cast<float>(total.mean[c]);
      variance[c] = static_cast<float>(total.squares[c] / total.count);
    }
  }
  std::vector<float> scale(channels), shift(channels);
  for (Index c = 0; c < channels; ++c) {
    scale[c] = norm_weight[c] / std::sqrt(variance[c] + epsilon);
    shift[c] = norm_bias[c] - mean[c] * scale[c];
  }
  each(threads, grid.parts(), [&](Index part) {
    const Band band(grid, part);
    Window normed(row);
    const auto fill = [&](Index r) {
      const float *from = hidden + band.start + r * row;
      float *to = normed.at(r);
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c)
          to[i + c] = from[i + c] * cdf(from[i + c]) * scale[c] + shift[c];
    };
    for (Index r = std::max<Index>(band.first - 1, 0); r <= band.first; ++r) fill(r);
    for (Index r = band.first; r < band.last; ++r) {
      if (r + 1 < height) fill(r + 1);
      const float *rows[3] = {r > 0 ? normed.at(r - 1) : nullptr, normed.at(r),
                              r + 1 < height ? normed.at(r + 1) : nullptr};
      convolve_row(rows, zeros.data(), grid, taps2.data(), bias2, y + band.start + r * row);
    }
  });
}

// space: as large as x
void local_back(int threads, Index pictures, Index height, Index width, Index channels, int batch,
                float epsilon, const float *x, const float *weight1, const float *norm_weight,
                const float *norm_bias, const float *weight2, const float *hidden,
                const float *mean, const float *variance, const float *grad, float *space,
                float *grad_x, float *grad_weight1, float *grad_bias1, float *grad_norm_weight,
                float *grad_norm_bias, float *grad_weight2, float *grad_bias2) {
  const Grid grid{pictures, height, width, channels};
  const std::vector<float> taps1 = by_tap(weight1, channels), taps2 = by_tap(weight2, channels);
  const std::vector<float> zeros(channels, 0.0f);
  const Index row = grid.row(), parts = grid.parts();
  std::vector<float> inverse(channels), turned(9 * channels);
  for (Index c = 0; c < channels; ++c) inverse[c] = 1.0f / std::sqrt(variance[c] + epsilon);
  // Per part: gradients of weight (9, C) and bias (C) of a convolution, then those of the norm.
  const Index stride = 12 * channels;
  std::vector<float> sums(parts * stride, 0.0f);
  each(threads, parts, [&](Index part) {
    const Band band(grid, part);
    float *by_taps = sums.data() + part * stride, *by_bias = by_taps + 9 * channels;
    float *by_norm = by_bias + channels, *by_norm_bias = by_norm + channels;
    std::vector<float> hat(row), normed(row);
    for (Index r = band.first; r < band.last; ++r) {
      const Index at = band.start + r * row;
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c) {
          const float before = hidden[at + i + c];
          hat[i + c] = (before * cdf(before) - mean[c]) * inverse[c];
          normed[i + c] = hat[i + c] * norm_weight[c] + norm_bias[c];
        }
      const float *here = grad + at;
      const float *rows[3] = {r > 0 ? here - row : nullptr, here,
                              r + 1 < height ? here + row : nullptr};
      convolve_back(rows, zeros.data(), grid, taps2.data(), normed.data(), by_taps, space + at);
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c) {
          by_bias[c] += here[i + c];
          by_norm[c] += space[at + i + c] * hat[i + c];
          by_norm_bias[c] += space[at + i + c];
        }
    }
  });
  add_up(sums.data(), parts, stride, 9 * channels, turned.data());
  by_channel(turned, channels, grad_weight2);
  add_up(sums.data() + 9 * channels, parts, stride, channels, grad_bias2);
  add_up(sums.data() + 10 * channels, parts, stride, channels, grad_norm_weight);
  add_up(sums.data() + 11 * channels, parts, stride, channels, grad_norm_bias);
  // Statistics of the batch depend on all tokens.
  const float share = batch ? 1.0f / static_cast<float>(pictures * height * width) : 0.0f;
  std::fill(sums.begin(), sums.end(), 0.0f);
  each(threads, parts, [&](Index part) {
    const Band band(grid, part);
    float *by_taps = sums.data() + part * stride, *by_bias = by_taps + 9 * channels;
    Window grads(row);
    const auto fill = [&](Index r) {
      const Index at = band.start + r * row;
      float *to = grads.at(r);
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c) {
          const float before = hidden[at + i + c], below = cdf(before);
          const float distance = (before * below - mean[c]) * inverse[c];
          const float part_of = space[at + i + c] - share * grad_norm_bias[c] -
                                distance * share * grad_norm_weight[c];
          to[i + c] =
              part_of * norm_weight[c] * inverse[c] * (below + before * pdf(before));
        }
    };
    for (Index r = std::max<Index>(band.first - 1, 0); r <= band.first; ++r) fill(r);
    for (Index r = band.first; r < band.last; ++r) {
      if (r + 1 < height) fill(r + 1);
      const Index at = band.start + r * row;
      const float *here = grads.at(r);
      const float *rows[3] = {r > 0 ? grads.at(r - 1) : nullptr, here,
                              r + 1 < height ? grads.at(r + 1) : nullptr};
      convolve_back(rows, zeros.data(), grid, taps1.data(), x + at, by_taps, grad_x + at);
      for (Index i = 0; i < row; i += channels)
#pragma omp simd
        for (Index c = 0; c < channels; ++c) by_bias[c] += here[i + c];
    }
  });
  add_up(sums.data(), parts, stride, 9 * channels, turned.data());
  by_channel(turned, channels, grad_weight1);
  add_up(sums.data() + 9 * channels, parts, stride, channels, grad_bias1);
}

// hidden += bias; activated = gelu(hidden)
void activate(int threads, Index count, Index wide, float *hidden, const float *bias,
              float *activated) {
  const Rows rows(count);
  each(threads, rows.parts, [&](Index part) {
    for (Index r = rows.begin(part); r < rows.end(part); ++r) {
      float *of = hidden + r * wide, *into = activated + r * wide;
#pragma omp simd
      for (Index c = 0; c < wide; ++c) {
        of[c] += bias[c];
        into[c] = of[c] * cdf(of[c]);
      }
    }
  });
}

// y = gelu(x W1 + b1) W2 + b2, `slice` tokens at a time; hidden = x W1 + b1 of all tokens if
// `keep`, else of a slice; activated: of a slice. Returns 0 if all went well.
int mlp(int threads, Index count, Index channels, Index wide, Index slice, int keep, const float *x,
        const float *weight1, const float *bias1, const float *weight2, const float *bias2,
        float *hidden, float *activated, float *y) {
  set_threads(threads);
  int failed = 0;
  for (Index first = 0; first < count && !failed; first += slice) {
    const Index n = std::min(slice, count - first);
    float *before = hidden + (keep ? first * wide : 0), *to = y + first * channels;
    failed |= product('N', 'N', n, wide, channels, 1.0f, x + first * channels, channels, weight1,
                      wide, 0.0f, before, wide);
    activate(threads, n, wide, before, bias1, activated);
    const Rows rows(n);
    each(threads, rows.parts, [&](Index part) {
      for (Index r = rows.begin(part); r < rows.end(part); ++r)
        std::copy_n(bias2, channels, to + r * channels);
    });
    failed |= product('N', 'N', n, channels, wide, 1.0f, activated, wide, weight2, channels, 1.0f,
                      to, channels);
  }
  return failed;
}

// Of each picture: the sum of its rows.
void row_sums(int threads, Index pictures, Index count, Index width, const float *x, float *out) {
  const Rows rows(count);
  std::vector<float> sums(pictures * rows.parts * width, 0.0f);
  each(threads, pictures * rows.parts, [&](Index part) {
    float *to = sums.data() + part * width;
    const float *from = x + part / rows.parts * count * width;
    for (Index r = rows.begin(part % rows.parts); r < rows.end(part % rows.parts); ++r)
#pragma omp simd
      for (Index c = 0; c < width; ++c) to[c] += from[r * width + c];
  });
  for (Index i = 0; i < pictures; ++i)
    add_up(sums.data() + i * rows.parts * width, rows.parts, width, width, out + i * width);
}

// activated = gelu(hidden); slope, the gradient of that, becomes that of hidden, and by_bias the sum
// of its rows.
void activate_back(int threads, Index count, Index wide, const float *hidden, float *slope,
                   float *activated, float *by_bias) {
  const Rows rows(count);
  std::vector<float> sums(rows.parts * wide, 0.0f);
  each(threads, rows.parts, [&](Index part) {
    float *to = sums.data() + part * wide;
    for (Index r = rows.begin(part); r < rows.end(part); ++r) {
      const float *before = hidden + r * wide;
      float *of = slope + r * wide, *into = activated + r * wide;
#pragma omp simd
      for (Index c = 0; c < wide; ++c) {
        const float below = cdf(before[c]);
        into[c] = before[c] * below;
        of[c] *= below + before[c] * pdf(before[c]);
        to[c] += of[c];
      }
    }
  });
  add_up(sums.data(), rows.parts, wide, wide, by_bias);
}

// activated, grad_hidden: of a slice
int mlp_back(int threads, Index count, Index channels, Index wide, Index slice, const float *x,
             const float *weight1, const float *weight2, const float *hidden, const float *grad,
             float *activated, float *grad_hidden, float *grad_x, float *grad_weight1,
             float *grad_bias1, float *grad_weight2, float *grad_bias2) {
  set_threads(threads);
  int failed = 0;
  std::vector<float> of_slice(wide);
  for (Index first = 0; first < count && !failed; first += slice) {
    const Index n = std::min(slice, count - first);
    const float *from = x + first * channels, *g = grad + first * channels;
    const float more = first ? 1.0f : 0.0f;
    failed |= product('N', 'T', n, wide, channels, 1.0f, g, channels, weight2, channels, 0.0f,
                      grad_hidden, wide);
    activate_back(threads, n, wide, hidden + first * wide, grad_hidden, activated, of_slice.data());
    for (Index c = 0; c < wide; ++c) grad_bias1[c] = (first ? grad_bias1[c] : 0.0f) + of_slice[c];
    failed |= product('T', 'N', channels, wide, n, 1.0f, from, channels, grad_hidden, wide, more,
                      grad_weight1, wide);
    failed |= product('T', 'N', wide, channels, n, 1.0f, activated, wide, g, channels, more,
                      grad_weight2, channels);
    failed |= product('N', 'T', n, channels, wide, 1.0f, grad_hidden, wide, weight1, wide, 0.0f,
                      grad_x + first * channels, channels);
  }
  row_sums(threads, 1, count, channels, grad, grad_bias2);
  return failed;
}

// Of each picture: out (m x n) = A (m x k) B (k x n), either turned by 'T', plus its row (n) of
// `offset` if there is one.
int products(int threads, Index pictures, int turn_a, int turn_b, Index m, Index n, Index k,
             const float *a, const float *b, const float *offset, float *out) {
  set_threads(threads);
  const Rows rows(offset ? m : 0);
  each(threads, pictures * rows.parts, [&](Index part) {
    const Index i = part / rows.parts;
    for (Index r = rows.begin(part % rows.parts); r < rows.end(part % rows.parts); ++r)
      std::copy_n(offset + i * n, n, out + (i * m + r) * n);
  });
  std::atomic<int> failed{0};
  // Whole pictures for each thread, or all threads for one picture after the other.
  each(pictures >= 2 * threads ? threads : 1, pictures, [&](Index i) {
    failed |= product(turn_a ? 'T' : 'N', turn_b ? 'T' : 'N', m, n, k, 1.0f, a + i * m * k,
                      turn_a ? m : k, b + i * k * n, turn_b ? k : n, offset ? 1.0f : 0.0f,
                      out + i * m * n, n);
  });
  return failed;
}

// y (B, D, rows, columns) of x (B, C, H, W) and weight (D, C, 3, 3), padded by a pixel
int convolve(int threads, Index pictures, Index height, Index width, Index in, Index out,
             Index stride, const float *x, const float *weight, float *y) {
  set_threads(threads);
  const Map map{height, width, in, out, stride};
  const Index step = map.band(), pixels = map.pixels();
  std::vector<float> space(map.seen() * step * map.columns());
  int failed = 0;
  for (Index i = 0; i < pictures; ++i)
    for (Index first = 0; first < map.rows(); first += step) {
      const Index last = std::min(map.rows(), first + step), n = (last - first) * map.columns();
      each(threads, in, [&](Index c) {
        map.gather(x + i * in * height * width, c, first, last, space.data());
      });
      failed |= product('N', 'N', out, n, map.seen(), 1.0f, weight, map.seen(), space.data(), n,
                        0.0f, y + i * out * pixels + first * map.columns(), pixels);
    }
  return failed;
}

// grad_x may be left out
int convolve_back(int threads, Index pictures, Index height, Index width, Index in, Index out,
                  Index stride, const float *x, const float *weight, const float *grad,
                  float *grad_x, float *grad_weight) {
  set_threads(threads);
  const Map map{height, width, in, out, stride};
  const Index step = map.band(), pixels = map.pixels(), area = height * width;
  std::vector<float> space(map.seen() * step * map.columns());
  int failed = 0;
  if (grad_x) std::fill_n(grad_x, pictures * in * area, 0.0f);
  for (Index i = 0; i < pictures; ++i)
    for (Index first = 0; first < map.rows(); first += step) {
      const Index last = std::min(map.rows(), first + step), n = (last - first) * map.columns();
      const float *g = grad + i * out * pixels + first * map.columns();
      each(threads, in, [&](Index c) {
        map.gather(x + i * in * area, c, first, last, space.data());
      });
      failed |= product('N', 'T', out, map.seen(), n, 1.0f, g, pixels, space.data(), n,
                        i || first ? 1.0f : 0.0f, grad_weight, map.seen());
      if (!grad_x) continue;
      failed |= product('T', 'N', map.seen(), n, out, 1.0f, weight, map.seen(), g, pixels, 0.0f,
                        space.data(), n);
      each(threads, in, [&](Index c) {
        map.scatter(space.data(), c, first, last, grad_x + i * in * area);
      });
    }
  return failed;
}

// y = v attention^T, attention = softmax(temperature q^T k / |q| / |k|), of qkv (B, N, 3C). For the
// gradient: q^T k and attention (B, h, c, c), and 1 / |q| and 1 / |k| (B, h, 2, c).
int attend(int threads, Index pictures, Index tokens, Index heads, Index width, const float *qkv,
           const float *temperature, float *covariance, float *attention, float *inverse,
           float *y) {
  set_threads(threads);
  std::atomic<int> failed{0};
  const Head head{tokens, heads, width};
  each(threads, pictures * heads, [&](Index i) {
    const Index square = i * width * width, norms = i * 2 * width;
    failed |= head.forward(qkv + head.at(i, 3), temperature[i % heads], covariance + square,
                           attention + square, inverse + norms, y + head.at(i, 1));
  });
  return failed;
}

int attend_back(int threads, Index pictures, Index tokens, Index heads, Index width,
                const float *qkv, const float *temperature, const float *covariance,
                const float *attention, const float *inverse, const float *grad, float *grad_qkv,
                float *grad_temperature) {
  set_threads(threads);
  std::atomic<int> failed{0};
  const Head head{tokens, heads, width};
  std::vector<float> by_temperature(pictures * heads);
  each(threads, pictures * heads, [&](Index i) {
    const Index square = i * width * width, norms = i * 2 * width;
    failed |= head.backward(qkv + head.at(i, 3), temperature[i % heads], covariance + square,
                            attention + square, inverse + norms, grad + head.at(i, 1),
                            grad_qkv + head.at(i, 3), by_temperature[i]);
  });
  add_up(by_temperature.data(), pictures, heads, heads, grad_temperature);
  return failed;
}

}  // extern "C"
