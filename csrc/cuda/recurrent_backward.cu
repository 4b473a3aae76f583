// SPDX-License-Identifier: Apache-2.0
// A recurrent layer back through time, in one launch: from the gradients of the states to those of
// the sums of every token, of which matrix products make all other gradients.
//
// As forward, with the transpose of the recurrent weights resident. A step multiplies it with the
// gate gradients of the step after, which gives the gradient of the hidden state; a thread turns
// that of its two units into their gate gradients and writes these, where the next step and the
// products at the end read them. With s = phi(c') and dh the gradient of h':
//   rnn:  da = dh phi'(h')
//   lstm: do = dh s,        dc += dh o phi'(s),  df = dc c,  di = dc g,  dg = dc i,  dc <- dc f
//   gru:  dn = dh (1 - z),  dz = dh (h - n),     dr = dn' hn,  dhn = dn' r,  dh <- dh z
// each times the derivative of its activation, which the activated gate gives (n' is before it).
#include "cuda/launch.h"
#include "cuda/recurrent.h"
#include "cuda/recurrent_block.cuh"
#include "cuda/recurrent_product.cuh"
#include "cuda/recurrent_schedule.cuh"
#include "cuda/recurrent_start.cuh"

namespace seqrec {
namespace cuda {
namespace {

template <RecurrentCell C, RecurrentMath M>
class Backward {
 public:
  static constexpr int kGates = recurrent_gate_count(C);
  static constexpr bool kLstm = C == RecurrentCell::kLstm, kGru = C == RecurrentCell::kGru;
  static constexpr int kWritten = kGru ? 4 : kGates;
  // what a step reads of the forward pass: lstm and gru their gates; then
  static constexpr int kHidden = C == RecurrentCell::kRnn ? 0 : kGates;  // gru: hn, rnn: h'
  static constexpr int kBefore = kHidden + (kLstm ? 0 : 1);              // the state before
  static constexpr int kGiven = kBefore + 1;                             // d_output
  static constexpr int kRead = kGiven + 1;
  using Product = RecurrentProduct<M, kGates, true>;
  using T = typename Product::T;

  __device__ Backward(const RecurrentBackward& layer, unsigned char* shared)
      : p_(layer),
        plan_(layer.plan),
        place_(layer.plan),
        split_(layer.plan.form != RecurrentForm::kWhole),
        shared_(shared) {
    ring_ = reinterpret_cast<RecurrentRing*>(shared);
    operand_ = reinterpret_cast<T*>(shared + plan_.operand_at);
  }

  __device__ void run() {
    RecurrentQueue<-1> queue(p_.batch, place_.team, plan_.teams);
    prepare();
    if (place_.warp == 0) {
      queue.advance(plan_.slots, place_.lane, *ring_, 0);
      queue.advance(plan_.slots, place_.lane, *ring_, 1);
    }
    unsigned* counter = team_counter(p_.workspace, plan_, place_);
    __syncthreads();
    begin();
    // rows that leave take a step more, which gives the gradient of their initial state
    for (int t = 0; ring_->mask(t) != 0 || (t > 0 && ring_->mask(t - 1) != 0); ++t) {
      if (place_.warp == 0) queue.advance(plan_.slots, place_.lane, *ring_, t + 2);
      const T* operand = operand_ + (split_ ? 0 : (t & 1) * plan_.slots * plan_.tile_stride);
      float sums[kGates][2][4];
      const unsigned before = t > 0 ? ring_->mask(t - 1) : 0;
      product_.run(plan_, operand, (before >> 8) != 0, sums);
      step(t, sums);
      if (split_) {
        if (ring_->mask(t) == 0) break;
        if (plan_.barriers)
          team_barrier(counter, static_cast<unsigned>(plan_.members) * (t + 1u));
        else
          __syncthreads();
        gather(t);
      }
      __syncthreads();
    }
  }

 private:
  __device__ void prepare() {
    const int copies = split_ ? 1 : 2;
    for (int i = threadIdx.x; i < copies * plan_.slots * plan_.tile_stride; i += blockDim.x) {
      operand_[i] = from_float<T>(0.0f);
    }
    product_.load(RecurrentMatrix<T>(p_.w_hh_t, place_.hidden, kGates, true), plan_,
                  place_.warp_unit, place_.shared_weights(shared_, plan_, kGates),
                  place_.streamed_weights(p_.workspace, plan_, kGates));
    pass_empty_rows(p_.batch, place_.team, plan_.teams, place_.first, plan_.units, place_.hidden,
                    static_cast<const T*>(p_.d_h_end), static_cast<T*>(p_.dh0));
    if constexpr (kLstm) {
      pass_empty_rows(p_.batch, place_.team, plan_.teams, place_.first, plan_.units, place_.hidden,
                      static_cast<const T*>(p_.d_c_end), static_cast<T*>(p_.dc0));
    }
  }

  __device__ void begin() {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int slot = place_.slot(n, i);
        if (slot < plan_.slots) fetch(ring_->at(0, slot), n, i);
      }
    }
  }

  /// Reads of the forward pass what the gradients of a token need.
  __device__ void fetch(const RecurrentSlot& slot, int n, int i) {
    Two<T>(&read)[kRead] = read_[n][i];
    const std::int64_t at = slot.token * place_.hidden + place_.unit;
    const bool live = slot.live();
    if constexpr (kLstm || kGru) {
      const T* gates =
          static_cast<const T*>(p_.gates) + slot.token * kGates * place_.hidden + place_.unit;
#pragma unroll
      for (int g = 0; g < kGates; ++g) read[g] = place_.read(gates + g * place_.hidden, live);
    }
    if constexpr (!kLstm) {
      read[kHidden] = place_.read(static_cast<const T*>(kGru ? p_.hn : p_.output) + at, live);
    }
    read[kGiven] = Two<T>{from_float<T>(0.0f), from_float<T>(0.0f)};
    if (p_.d_output != nullptr && live) {
      read[kGiven] = place_.read(static_cast<const T*>(p_.d_output) + at);
    }
    // The first token of a row has the initial state before it. Back in time it leaves.
    const std::int64_t start = std::int64_t{slot.row} * place_.hidden + place_.unit;
    read[kBefore] = Two<T>{from_float<T>(0.0f), from_float<T>(0.0f)};
    if (kGru || p_.h_prev != nullptr) {
      if (!slot.leaves()) {
        read[kBefore] = place_.read(static_cast<const T*>(p_.output) + at - place_.hidden, live);
      } else if (p_.h0 != nullptr) {
        read[kBefore] = place_.read(static_cast<const T*>(p_.h0) + start);
      }
    }
    if constexpr (kLstm) {
      if (slot.enters()) now_[n][i] = place_.read(p_.cells + at, true);
      before_[n][i] = Two<float>{0.0f, 0.0f};
      if (!slot.leaves()) {
        before_[n][i] = place_.read(p_.cells + at - place_.hidden, live);
      } else if (p_.c0 != nullptr) {
        const Two<T> c = place_.read(static_cast<const T*>(p_.c0) + start);
        before_[n][i] = Two<float>{to_float(c.a), to_float(c.b)};
      }
    }
  }

  __device__ void step(int t, const float (&sums)[kGates][2][4]) {
    T* next_operand = operand_ + (split_ ? 0 : ((t + 1) & 1) * plan_.slots * plan_.tile_stride);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int slot = place_.slot(n, i);
        if (slot >= plan_.slots) continue;
        float dh[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          dh[j] = kGru ? carry_[n][i][j] : 0.0f;
#pragma unroll
          for (int g = 0; g < kGates; ++g) dh[j] += sums[g][n][j * 2 + i];
        }
        if (t > 0 && ring_->at(t - 1, slot).leaves()) leave(ring_->at(t - 1, slot), n, i, dh);
        const RecurrentSlot& now = ring_->at(t, slot);
        if (now.live()) {
          if (now.enters()) enter(now, n, i, dh);
          cell(now, n, i, dh, next_operand + slot * plan_.tile_stride + place_.unit);
        }
        if constexpr (kLstm) now_[n][i] = before_[n][i];
        fetch(ring_->at(t + 1, slot), n, i);
      }
    }
  }

  /// The gradients of the last state of a row, with which it begins.
  __device__ void enter(const RecurrentSlot& now, int n, int i, float (&dh)[2]) {
    const std::int64_t at = std::int64_t{now.row} * place_.hidden + place_.unit;
    dh[0] = dh[1] = 0.0f;
    if (p_.d_h_end != nullptr) {
      const Two<T> given = place_.read(static_cast<const T*>(p_.d_h_end) + at);
      dh[0] = to_float(given.a), dh[1] = to_float(given.b);
    }
    if constexpr (kLstm) {
      carry_[n][i][0] = carry_[n][i][1] = 0.0f;
      if (p_.d_c_end != nullptr) {
        const Two<T> given = place_.read(static_cast<const T*>(p_.d_c_end) + at);
        carry_[n][i][0] = to_float(given.a), carry_[n][i][1] = to_float(given.b);
      }
    }
  }

  /// The gradients of the initial state of a row.
  __device__ void leave(const RecurrentSlot& was, int n, int i, const float (&dh)[2]) {
    const std::int64_t at = std::int64_t{was.row} * place_.hidden + place_.unit;
    if (p_.dh0 != nullptr) {
      place_.write(static_cast<T*>(p_.dh0) + at,
                   Two<T>{from_float<T>(dh[0]), from_float<T>(dh[1])});
    }
    if constexpr (kLstm) {
      if (p_.dc0 != nullptr) {
        const float (&dc)[2] = carry_[n][i];
        place_.write(static_cast<T*>(p_.dc0) + at,
                     Two<T>{from_float<T>(dc[0]), from_float<T>(dc[1])});
      }
    }
  }

  /// Gate gradients of two units of one token, to device memory and to the operand of the product.
  __device__ void cell(const RecurrentSlot& now, int n, int i, const float (&given)[2],
                       T* operand) {
    float d[2][kWritten];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float y[kRead];
#pragma unroll
      for (int g = 0; g < kRead; ++g) y[g] = to_float(j == 0 ? read_[n][i][g].a : read_[n][i][g].b);
      const float dh = given[j] + y[kGiven];
      float& carry = carry_[n][i][j];
      if constexpr (kLstm) {
        const float shown = activate(j == 0 ? now_[n][i].a : now_[n][i].b);
        const float c_before = j == 0 ? before_[n][i].a : before_[n][i].b;
        const float dc = carry + dh * y[3] * slope(shown);
        d[j][0] = dc * y[2] * (y[0] - y[0] * y[0]);
        d[j][1] = dc * c_before * (y[1] - y[1] * y[1]);
        d[j][2] = dc * y[0] * slope(y[2]);
        d[j][3] = dh * shown * (y[3] - y[3] * y[3]);
        carry = dc * y[1];
      } else if constexpr (kGru) {
        const float dn = dh * (1.0f - y[1]) * slope(y[2]);
        d[j][0] = dn * y[0];
        d[j][1] = dn * y[kHidden] * (y[0] - y[0] * y[0]);
        d[j][2] = dh * (y[kBefore] - y[2]) * (y[1] - y[1] * y[1]);
        d[j][3] = dn;
        carry = dh * y[1];
      } else {
        d[j][0] = dh * slope(y[kHidden]);
      }
    }
    T* to = static_cast<T*>(p_.d_gates) + now.token * kWritten * place_.hidden + place_.unit;
#pragma unroll
    for (int g = 0; g < kWritten; ++g) {
      const Two<T> rounded{from_float<T>(d[0][g]), from_float<T>(d[1][g])};
      place_.write(to + g * place_.hidden, rounded);
      if (!split_) {
        if (!kGru || g < 3) place_.write_tile(operand + part(g) * plan_.part_stride, rounded);
      }
    }
    if (p_.h_prev != nullptr) {
      place_.write(static_cast<T*>(p_.h_prev) + now.token * place_.hidden + place_.unit,
                   read_[n][i][kBefore]);
    }
  }

  /// The gate of W_hh that written gate g belongs to; of a gru hn, r, z are n, r, z.
  static __device__ constexpr int part(int g) { return kGru ? (g + 2) % 3 : g; }

  /// The gate gradients of step t, of all units, from L2.
  __device__ void gather(int t) {
    const std::int64_t hidden = place_.hidden;
    for (int slot = 0; slot < plan_.slots; ++slot) {
      const RecurrentSlot& now = ring_->at(t, slot);
      if (!now.live()) continue;
      T* to = operand_ + slot * plan_.tile_stride;
      const T* from = static_cast<const T*>(p_.d_gates) + now.token * kWritten * hidden;
      for (int g = 0; g < kGates; ++g) {
        gather_row(from + g * hidden, place_.hidden, place_.whole_lines,
                   to + part(g) * plan_.part_stride);
      }
    }
  }

  __device__ float activate(float x) const {
    return p_.activation == CellActivation::kTanh ? tanhf(x) : sigmoid(x);
  }
  /// The derivative of the activation where it is y.
  __device__ float slope(float y) const {
    return p_.activation == CellActivation::kTanh ? 1.0f - y * y : y - y * y;
  }

  const RecurrentBackward& p_;
  const RecurrentPlan& plan_;
  const RecurrentPlace<M> place_;
  const bool split_;  // the block has some of the units, else all
  unsigned char* shared_;
  RecurrentRing* ring_;
  T* operand_;  // [1 or 2][slots][gates][part_stride]: the gate gradients that the product reads
  Product product_;
  Two<T> read_[2][2][kRead]{};               // of the step to come
  Two<float> now_[2][2]{}, before_[2][2]{};  // lstm: c' and c of the step to come
  float carry_[2][2][2]{};  // lstm: the gradient of c; gru: of h, what does not pass the product
};

template <RecurrentCell C, RecurrentMath M>
__global__ void __launch_bounds__(32 * recurrent_most_warps(C), 1)
    recurrent_backward_kernel(const __grid_constant__ RecurrentBackward layer) {
  SEQREC_SHARED(shared);
  Backward<C, M>(layer, shared).run();
}

template <RecurrentCell C, RecurrentMath M>
struct BackwardKernel {
  static void start(const RecurrentBackward& layer, cudaStream_t stream) {
    const RecurrentPlan& plan = layer.plan;
    const dim3 grid = recurrent_grid(plan), block = recurrent_threads(plan);
    if (plan.barriers) {
      launch_cooperative(recurrent_backward_kernel<C, M>, grid, block, plan.shared, stream, layer);
    } else {
      launch(recurrent_backward_kernel<C, M>, grid, block, plan.shared, stream, layer);
    }
  }
};

}  // namespace

void launch_recurrent_backward(const RecurrentBackward& layer, cudaStream_t stream) {
  start_recurrent<BackwardKernel>(layer, stream);
}

}  // namespace cuda
}  // namespace seqrec
