// 3 x 3 convolutions of each channel for itself, row by row, and their gradients.
#pragma once

#include "parts.h"

namespace {

constexpr Index BAND = 8;  // rows of a picture in one part

struct Grid {
  Index pictures, height, width, channels;
  Index bands() const { return (height + BAND - 1) / BAND; }
  Index parts() const { return pictures * bands(); }
  Index row() const { return width * channels; }
};

// The rows of one part: first up to before last, of the picture that begins at `start`.
struct Band {
  Index start, first, last;
  Band(const Grid &grid, Index part)
      : start(part / grid.bands() * grid.height * grid.row()), first(part % grid.bands() * BAND),
        last(std::min(grid.height, first + BAND)) {}
};

// (C, 1, 3, 3) -> (9, C), or backwards the other way round
std::vector<float> by_tap(const float *weight, Index channels) {
  std::vector<float> turned(9 * channels);
  for (Index c = 0; c < channels; ++c)
    for (Index k = 0; k < 9; ++k) turned[k * channels + c] = weight[c * 9 + k];
  return turned;
}

void by_channel(const std::vector<float> &turned, Index channels, float *weight) {
  for (Index c = 0; c < channels; ++c)
    for (Index k = 0; k < 9; ++k) weight[c * 9 + k] = turned[k * channels + c];
}

// The pixels around column x of three rows; outside of the picture there are zeros.
struct Around {
  const float *at[9];
  Around(const float *const rows[3], const float *zeros, Index x, const Grid &grid) {
    for (Index i = 0; i < 3; ++i)
      for (Index j = 0; j < 3; ++j) {
        const Index column = x + j - 1;
        const bool inside = rows[i] && column >= 0 && column < grid.width;
        at[3 * i + j] = inside ? rows[i] + column * grid.channels : zeros;
      }
  }
};

void convolve_row(const float *const rows[3], const float *zeros, const Grid &grid,
                  const float *weight, const float *bias, float *out) {
  const Index channels = grid.channels;
  for (Index x = 0; x < grid.width; ++x, out += channels) {
    const Around around(rows, zeros, x, grid);
#pragma omp simd
    for (Index c = 0; c < channels; ++c) {
      float sum = bias[c];
      for (Index k = 0; k < 9; ++k) sum += weight[k * channels + c] * around.at[k][c];
      out[c] = sum;
    }
  }
}

// The gradient of the input's row, from three rows of the output's; grad_weight (9, C) is added to.
void convolve_back(const float *const rows[3], const float *zeros, const Grid &grid,
                   const float *weight, const float *input, float *grad_weight, float *out) {
  const Index channels = grid.channels;
  for (Index x = 0; x < grid.width; ++x, out += channels, input += channels) {
    const Around around(rows, zeros, x, grid);
#pragma omp simd
    for (Index c = 0; c < channels; ++c) {
      const float own = input[c];
      float sum = 0.0f;
      for (Index k = 0; k < 9; ++k) {
        const float grad = around.at[8 - k][c];
        sum += weight[k * channels + c] * grad;
        grad_weight[k * channels + c] += own * grad;
      }
      out[c] = sum;
    }
  }
}

// The last three rows of something that is computed row by row.
class Window {
 public:
  explicit Window(Index row) : row_(row), kept_(3 * row) {}
  float *at(Index y) { return kept_.data() + (y % 3) * row_; }

 private:
  Index row_;
  std::vector<float> kept_;
};

// Number, mean and sum of squared distances from it, per channel (Chan, Golub, LeVeque 1979).
struct Moments {
  double count = 0;
  std::vector<double> mean, squares;
  explicit Moments(Index channels) : mean(channels, 0.0), squares(channels, 0.0) {}

  template <class Mean, class Squares>
  void add(double more, const Mean &their_mean, const Squares &their_squares) {
    const double total = count + more;
    for (std::size_t c = 0; c < mean.size(); ++c) {
      const double delta = their_mean[c] - mean[c];
      mean[c] += delta * (more / total);
      squares[c] += their_squares[c] + delta * delta * (count * more / total);
    }
    count = total;
  }
};

}  // namespace
