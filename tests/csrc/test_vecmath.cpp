// SPDX-License-Identifier: Apache-2.0
// The stated errors of base/vecmath.h, over a sample of all floats, at the widest width that the
// tests may compile without flags: the formulas are the same at every width.
#define SEQREC_ISA isa_vecmath_test
#include <cmath>
#include <cstring>
#include <limits>

#include "base/vecmath.h"
#include "check.h"
#include "kernels/feed_forward.h"

namespace {

namespace vm = seqrec::isa_vecmath_test;
constexpr int W = 4;
using F = vm::Floats<W>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kSmallest = 0x1p-126;

float value(F (*function)(F), float x) { return function(vm::broadcast<W>(x))[0]; }

/// The worst error over every 4,099th float of [low, high], in units in the last place of the
/// result, or of the argument where `of_argument`.
double worst_ulp(F (*function)(F), double (*exact)(double), float low, float high,
                 bool of_argument = false) {
  double worst = 0;
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += 4099) {
    const auto word = static_cast<std::uint32_t>(bits);
    float x;
    std::memcpy(&x, &word, sizeof x);
    if (!(x >= low && x <= high)) continue;
    const double found = value(function, x), want = exact(x);
    const double scale = std::fabs(of_argument ? static_cast<double>(x) : want);
    if (scale < kSmallest) {
      CHECK(std::fabs(found - want) <= kSmallest, "at %g: %g, not %g", x, found, want);
      continue;
    }
    if (scale > std::numeric_limits<float>::max()) {
      CHECK(found == want || std::isinf(found), "at %g: %g, not %g", x, found, want);
      continue;
    }
    int exponent;
    std::frexp(scale, &exponent);
    const double error = std::fabs(found - want) / std::ldexp(1.0, exponent - 24);
    CHECK(!std::isnan(found), "NaN at %g", x);
    if (error > worst) worst = error;
  }
  return worst;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }
double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

#define CHECK_ULP(limit, ...)                                       \
  do {                                                              \
    const double found = worst_ulp(__VA_ARGS__);                    \
    CHECK(found <= (limit), "%.2f units in the last place", found); \
    CHECK(found > 0.3, "no error at all: nothing was measured");    \
  } while (false)

}  // namespace

TEST(vecmath_errors) {
  constexpr float kMax = std::numeric_limits<float>::max();
  CHECK_ULP(1.1, &vm::exp<W>, &std::exp, -kMax, kMax);
  CHECK_ULP(1.1, &vm::exp_of_negative<W>, &std::exp, -kMax, 0.0f);
  CHECK_ULP(2.0, &vm::expm1_of_positive<W>, &std::expm1, 0.0f, 88.0f);
  CHECK_ULP(3.0, &vm::tanh<W>, &std::tanh, -kMax, kMax);
  CHECK_ULP(2.5, &vm::sigmoid<W>, &sigmoid, -kMax, kMax);
  CHECK_ULP(3.0, &vm::silu<W>, &silu, -87.3f, kMax);
  CHECK_ULP(2.5, &vm::erf<W>, &std::erf, -kMax, kMax);
  CHECK_ULP(2.0, &vm::gelu<W>, &gelu, -kMax, kMax, true);
  CHECK_ULP(2.0, &vm::gelu_tanh<W>, &gelu_tanh, -1e12f, 1e12f, true);
}

TEST(vecmath_limits) {
  CHECK(value(&vm::exp<W>, kInf) == kInf);
  CHECK(value(&vm::exp<W>, -kInf) == 0.0f);
  CHECK(value(&vm::exp<W>, -0.0f) == 1.0f);
  CHECK(value(&vm::exp_of_negative<W>, -kInf) == 0.0f);
  CHECK(value(&vm::exp_of_negative<W>, -1e4f) == 0.0f);
  CHECK(value(&vm::tanh<W>, kInf) == 1.0f);
  CHECK(value(&vm::tanh<W>, -kInf) == -1.0f);
  CHECK(value(&vm::tanh<W>, 1e-40f) > 0.9e-40f);
  CHECK(std::signbit(value(&vm::tanh<W>, -0.0f)));
  CHECK(value(&vm::sigmoid<W>, kInf) == 1.0f);
  CHECK(value(&vm::sigmoid<W>, -kInf) == 0.0f);
  CHECK(value(&vm::silu<W>, kInf) == kInf);
  CHECK(value(&vm::silu<W>, -1e30f) == 0.0f);
  CHECK(value(&vm::erf<W>, kInf) == 1.0f);
  CHECK(value(&vm::erf<W>, -kInf) == -1.0f);
  for (F (*function)(F) : {&vm::exp<W>, &vm::exp_of_negative<W>, &vm::tanh<W>, &vm::sigmoid<W>,
                           &vm::silu<W>, &vm::erf<W>, &vm::gelu<W>, &vm::gelu_tanh<W>}) {
    CHECK(std::isnan(value(function, kNan)));
  }
}

template <seqrec::Activation A>
static F slope(F x) {
  return vm::value_and_slope<W, A>(x).slope;
}

TEST(vecmath_slopes) {
  const struct {
    F (*slope)(F);
    double (*function)(double);
  } pairs[] = {{&slope<seqrec::Activation::kSilu>, &silu},
               {&slope<seqrec::Activation::kGelu>, &gelu},
               {&slope<seqrec::Activation::kGeluTanh>, &gelu_tanh}};
  for (const auto& pair : pairs) {
    for (double x = -12; x <= 12; x += 0.037) {
      const double step = 1e-4;
      const double want = (pair.function(x + step) - pair.function(x - step)) / (2 * step);
      const double found = value(pair.slope, static_cast<float>(x));
      CHECK(std::fabs(found - want) < 2e-6, "at %g: %g, not %g", x, found, want);
    }
  }
}
