// GELU: x cdf(x), and what its gradient needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// Rational approximation of Eigen and XLA, within 3e-7.
inline float error_function(float x) {
  const float t = std::min(std::max(x, -4.0f), 4.0f), s = t * t;
  float p = -2.72614225801306e-10f;
  p = p * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * s - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;
  return t * p / q;
}

// 2^x for x <= 0, within 2e-7 of it: a whole power by its bits, and the Taylor series of the rest.
inline float power_of_two(float x) {
  const float bounded = std::max(x, -126.0f);
  const float shifted = bounded + 12582912.0f;  // 1.5 * 2^23: the last bits hold the whole number
  const float f = bounded - (shifted - 12582912.0f);
  float p = 1.5252734e-05f;
  p = p * f + 1.5403530e-04f;
  p = p * f + 1.3333558e-03f;
  p = p * f + 9.6181291e-03f;
  p = p * f + 5.5504109e-02f;
  p = p * f + 2.4022651e-01f;
  p = p * f + 6.9314718e-01f;
  p = p * f + 1.0f;
  std::int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits - 0x4B400000 + 127) << 23;
  float whole;
  std::memcpy(&whole, &bits, 4);
  return p * whole;
}

inline float cdf(float x) { return 0.5f + 0.5f * error_function(x * 0.70710678f); }

inline float pdf(float x) { return 0.39894228f * power_of_two(x * x * -0.72134752f); }

}  // namespace
