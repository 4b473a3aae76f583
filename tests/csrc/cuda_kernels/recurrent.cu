// SPDX-License-Identifier: Apache-2.0
// Recurrent layers in every form, cell and arithmetic.
#include "recurrent_layer.h"

using namespace recurrent_test;

namespace {

template <typename T>
void layer(const Case& given) {
  Layer<T> made(given);
  made.run(&launch_recurrent_forward, &launch_recurrent_backward);
  made.check(true);
}

void layer(const Case& given) {
  switch (given.math) {
    case RecurrentMath::kFloat16:
      return layer<Half>(given);
    case RecurrentMath::kBfloat16:
      return layer<BFloat16>(given);
    default:
      return layer<float>(given);
  }
}

/// Rows that end at different times, none, one and many tokens, more rows than slots.
const std::vector<int> kRagged = {3, 0, 1, 5, 2, 0, 4, 1, 2, 1, 3};

constexpr RecurrentCell kCells[] = {RecurrentCell::kRnn, RecurrentCell::kLstm, RecurrentCell::kGru};
constexpr RecurrentMath kMaths[] = {RecurrentMath::kFloat32, RecurrentMath::kTf32,
                                    RecurrentMath::kFloat16, RecurrentMath::kBfloat16};

}  // namespace

#ifndef SEQREC_SHIM_THREADS  // which would take minutes

TEST(recurrent_every_form) {
  for (const RecurrentCell cell : kCells) {
    for (const RecurrentMath math : kMaths) {
      layer({cell, math, 20, kRagged, RecurrentForm::kWhole, 1});
      layer({cell, math, 37, kRagged, RecurrentForm::kSplit});
    }
  }
}

/// So little shared memory that some weights are left to be streamed.
TEST(recurrent_streamed) {
  for (const RecurrentCell cell : kCells) {
    for (const RecurrentMath math : kMaths) {
      layer({cell, math, 150, {2, 0, 1}, RecurrentForm::kStreamed, 5, 5 << 10});
    }
  }
}

/// Sixteen slots, and the sigma variants.
TEST(recurrent_many_rows) {
  std::vector<int> lengths;
  for (int i = 0; i < 23; ++i) lengths.push_back(i % 5);
  for (const RecurrentCell cell : kCells) {
    Case given{cell, RecurrentMath::kFloat16, 17, lengths, RecurrentForm::kWhole, 1};
    given.activation = CellActivation::kSigmoid;
    layer(given);
    given.math = RecurrentMath::kFloat32;
    layer(given);
  }
}

/// The host does not look at offsets: whatever they say, only what exists is touched.
TEST(recurrent_offsets_that_lie) {
  for (const RecurrentForm form : {RecurrentForm::kWhole, RecurrentForm::kSplit}) {
    Case given{RecurrentCell::kGru, RecurrentMath::kBfloat16, 33, {3, 2, 4}, form, 3};
    for (const std::int64_t far : {std::int64_t{12}, std::int64_t{1} << 40}) {
      given.lies = {-far, far, 2, far};
      Layer<BFloat16>(given).run(&launch_recurrent_forward, &launch_recurrent_backward);
    }
  }
}

#endif

/// Few blocks and steps.
TEST(recurrent_small) {
  layer({RecurrentCell::kLstm, RecurrentMath::kFloat16, 20, {2, 0, 1}, RecurrentForm::kWhole, 1});
  layer({RecurrentCell::kGru, RecurrentMath::kFloat32, 18, {2, 3}, RecurrentForm::kWhole, 1});
  layer({RecurrentCell::kGru, RecurrentMath::kBfloat16, 33, {3, 2}, RecurrentForm::kSplit, 2});
  layer({RecurrentCell::kLstm, RecurrentMath::kFloat32, 20, {2, 1, 2}, RecurrentForm::kSplit, 2});
  layer({RecurrentCell::kRnn, RecurrentMath::kTf32, 80, {2}, RecurrentForm::kStreamed, 3, 5 << 10});
}
