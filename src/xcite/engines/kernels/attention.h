// Cross-covariance attention of one head of one picture, between the linear maps.
#pragma once

#include <cmath>

#include "gelu.h"
#include "parts.h"

namespace {

inline void softmax(float *row, Index count) {
  const float most = *std::max_element(row, row + count);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (Index i = 0; i < count; ++i) {
    row[i] = power_of_two((row[i] - most) * 1.44269504f);
    sum += row[i];
  }
  for (Index i = 0; i < count; ++i) row[i] /= sum;
}

// q, k and v (N, c) lie in the tokens (N, 3C) side by side, the results (N, c) in tokens (N, C).
struct Head {
  Index tokens, heads, width;  // N, h, c
  Index channels() const { return heads * width; }
  Index wide() const { return 3 * channels(); }

  // Where head i of all pictures' begins in tokens of so many times C channels.
  Index at(Index i, Index times) const {
    return i / heads * tokens * times * channels() + i % heads * width;
  }

  // out (c x c) = X^T Y of the head's parts of tokens that are x_wide and y_wide
  int inner(const float *x, Index x_wide, const float *y, Index y_wide, float *out) const {
    return product('T', 'N', width, width, tokens, 1.0f, x, x_wide, y, y_wide, 0.0f, out, width);
  }

  // out (N x c) = X M or, turned, X M^T of small matrices M (c x c)
  int outer(const float *x, Index x_wide, const float *matrix, bool turned, float *out,
            Index out_wide, float beta = 0.0f) const {
    return product('N', turned ? 'T' : 'N', tokens, width, width, 1.0f, x, x_wide, matrix, width,
                   beta, out, out_wide);
  }

  // 1 / max(|column|, 1e-12)
  void inverse_norms(const float *x, float *inverse) const {
    std::fill_n(inverse, width, 0.0f);
    for (Index n = 0; n < tokens; ++n)
#pragma omp simd
      for (Index c = 0; c < width; ++c) inverse[c] += x[n * wide() + c] * x[n * wide() + c];
    for (Index c = 0; c < width; ++c) inverse[c] = 1.0f / std::max(std::sqrt(inverse[c]), 1e-12f);
  }

  // to (N x c) = from with its columns multiplied
  void scaled(const float *from, const float *by, float *to) const {
    for (Index n = 0; n < tokens; ++n)
#pragma omp simd
      for (Index c = 0; c < width; ++c) to[n * wide() + c] = from[n * wide() + c] * by[c];
  }

  // Kept for the gradient: q^T k and attention (c, c), 1 / |q| and 1 / |k| (2, c).
  int forward(const float *q, float temperature, float *covariance, float *attention,
              float *inverse, float *y) const {
    const float *k = q + channels(), *v = k + channels();
    float *of_q = inverse, *of_k = inverse + width;
    int failed = inner(q, wide(), k, wide(), covariance);
    inverse_norms(q, of_q);
    inverse_norms(k, of_k);
    for (Index a = 0; a < width; ++a) {
      float *row = attention + a * width;
      for (Index b = 0; b < width; ++b)
        row[b] = covariance[a * width + b] * temperature * of_q[a] * of_k[b];
      softmax(row, width);
    }
    failed |= outer(v, wide(), attention, true, y, channels());
    return failed;
  }

  int backward(const float *q, float temperature, const float *covariance, const float *attention,
               const float *inverse, const float *grad, float *grad_q,
               float &grad_temperature) const {
    const float *k = q + channels(), *v = k + channels();
    float *grad_k = grad_q + channels(), *grad_v = grad_k + channels();
    const float *of_q = inverse, *of_k = inverse + width;
    std::vector<float> slope(width * width), by_q(width, 0.0f), by_k(width, 0.0f);
    int failed = outer(grad, channels(), attention, false, grad_v, wide());
    failed |= inner(grad, channels(), v, wide(), slope.data());
    double total = 0;
    for (Index a = 0; a < width; ++a) {
      const float *weights = attention + a * width;
      float *row = slope.data() + a * width;
      float mean = 0.0f;
      for (Index b = 0; b < width; ++b) mean += row[b] * weights[b];
      for (Index b = 0; b < width; ++b) {
        const float of_logit = weights[b] * (row[b] - mean), scale = of_q[a] * of_k[b];
        const float along = of_logit * scale * covariance[a * width + b];
        total += along;
        by_q[a] += along;
        by_k[b] += along;
        row[b] = of_logit * temperature * scale;  // of q^T k
      }
    }
    grad_temperature = static_cast<float>(total);
    // |q| and |k| divide; where they are bounded they do not move.
    for (Index c = 0; c < width; ++c) {
      by_q[c] = of_q[c] < 1e12f ? -by_q[c] * temperature * of_q[c] * of_q[c] : 0.0f;
      by_k[c] = of_k[c] < 1e12f ? -by_k[c] * temperature * of_k[c] * of_k[c] : 0.0f;
    }
    scaled(q, by_q.data(), grad_q);
    scaled(k, by_k.data(), grad_k);
    failed |= outer(k, wide(), slope.data(), true, grad_q, wide(), 1.0f);
    failed |= outer(q, wide(), slope.data(), false, grad_k, wide(), 1.0f);
    return failed;
  }
};

}  // namespace
