// SPDX-License-Identifier: Apache-2.0
// A recurrent layer forward: one launch runs all rows through all their time steps.
//
// The inputs have been multiplied by W_ih for all tokens at once. A block keeps the recurrent
// weights of its hidden units (recurrent_product.cuh), works on a few rows at a time
// (recurrent_schedule.cuh), and in each step multiplies, turns the sums that a thread holds into
// the new state of its units, and passes that on: through shared memory where the block has all
// units, through the output, which lies in L2, where others have some. Cell states (of a gru the
// hidden ones) stay in registers as float32 from the first token of a row to its last.
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
class Forward {
 public:
  static constexpr int kGates = recurrent_gate_count(C);
  static constexpr bool kLstm = C == RecurrentCell::kLstm, kGru = C == RecurrentCell::kGru;
  using Product = RecurrentProduct<M, kGates, false>;
  using T = typename Product::T;

  __device__ Forward(const RecurrentForward& layer, unsigned char* shared)
      : p_(layer),
        plan_(layer.plan),
        place_(layer.plan),
        split_(layer.plan.form != RecurrentForm::kWhole),
        shared_(shared) {
    ring_ = reinterpret_cast<RecurrentRing*>(shared);
    bias_ = reinterpret_cast<float*>(shared + plan_.bias_at);
    operand_ = reinterpret_cast<T*>(shared + plan_.operand_at);
  }

  __device__ void run() {
    RecurrentQueue<1> queue(p_.batch, place_.team, plan_.teams);
    prepare();
    if (place_.warp == 0) {
      queue.advance(plan_.slots, place_.lane, *ring_, 0);
      queue.advance(plan_.slots, place_.lane, *ring_, 1);
    }
    unsigned* counter = team_counter(p_.workspace, plan_, place_);
    __syncthreads();
    begin();
    if (split_) gather(0);
    __syncthreads();
    for (int t = 0; ring_->mask(t) != 0; ++t) {
      if (place_.warp == 0) queue.advance(plan_.slots, place_.lane, *ring_, t + 2);
      const T* operand = operand_ + (split_ ? 0 : (t & 1) * plan_.slots * plan_.tile_stride);
      const unsigned live = ring_->mask(t);
      float sums[kGates][2][4];
      product_.run(plan_, operand, (live >> 8) != 0, sums);
      step(t, sums);
      if (split_) {
        if (ring_->mask(t + 1) == 0) break;
        if (plan_.barriers)
          team_barrier(counter, static_cast<unsigned>(plan_.members) * (t + 1u));
        else
          __syncthreads();
        gather(t + 1);
      }
      __syncthreads();
    }
  }

 private:
  /// What does not depend on a step: weights, biases, the padding of the operand, empty rows.
  __device__ void prepare() {
    const int hidden = place_.hidden, units = plan_.units;
    const int copies = split_ ? 1 : 2;
    for (int i = threadIdx.x; i < copies * plan_.slots * plan_.tile_stride; i += blockDim.x) {
      operand_[i] = from_float<T>(0.0f);
    }
    const T* b_ih = static_cast<const T*>(p_.b_ih);
    const T* b_hh = static_cast<const T*>(p_.b_hh);
    for (int i = threadIdx.x; i < kGates * units; i += blockDim.x) {
      const int gate = i / units, unit = place_.first + i % units;
      const int from = gate * hidden + unit;
      const float b =
          b_ih != nullptr && unit < hidden ? to_float(load_readonly(b_ih + from)) : 0.0f;
      const float d =
          b_hh != nullptr && unit < hidden ? to_float(load_readonly(b_hh + from)) : 0.0f;
      const bool apart = kGru && gate == 2;
      bias_[i] = apart ? b : b + d;
      if (apart) bias_[i + units] = d;
    }
    product_.load(RecurrentMatrix<T>(p_.w_hh, place_.hidden, kGates, false), plan_,
                  place_.warp_unit, place_.shared_weights(shared_, plan_, kGates),
                  place_.streamed_weights(p_.workspace, plan_, kGates));
    pass_empty_rows(p_.batch, place_.team, plan_.teams, place_.first, units, hidden,
                    static_cast<const T*>(p_.h0), static_cast<T*>(p_.h_end));
    if constexpr (kLstm) {
      pass_empty_rows(p_.batch, place_.team, plan_.teams, place_.first, units, hidden,
                      static_cast<const T*>(p_.c0), static_cast<T*>(p_.c_end));
    }
  }

  /// The states of the rows of the first step.
  __device__ void begin() {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int slot = place_.slot(n, i);
        if (slot >= plan_.slots) continue;
        const RecurrentSlot& now = ring_->at(0, slot);
        fetch(now, n, i);
        if (now.live()) enter(now, slot, n, i, operand_);
      }
    }
  }

  /// What a step needs of the projected inputs; read before the barrier, used after the product.
  __device__ void fetch(const RecurrentSlot& slot, int n, int i) {
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const T* from = static_cast<const T*>(p_.projected) +
                      (slot.token * kGates + g) * place_.hidden + place_.unit;
      inputs_[n][i][g] = place_.read(from, slot.live());
    }
  }

  /// The initial state of a row that a slot begins with.
  __device__ void enter(const RecurrentSlot& now, int slot, int n, int i, T* operand) {
    const std::int64_t from = std::int64_t{now.row} * place_.hidden + place_.unit;
    Two<T> h{from_float<T>(0.0f), from_float<T>(0.0f)};
    if (p_.h0 != nullptr && (!split_ || kGru)) {
      h = place_.read(static_cast<const T*>(p_.h0) + from);
    }
    if (!split_) place_.write_tile(operand + slot * plan_.tile_stride + place_.unit, h);
    if constexpr (kLstm) {
      Two<T> c{from_float<T>(0.0f), from_float<T>(0.0f)};
      if (p_.c0 != nullptr) c = place_.read(static_cast<const T*>(p_.c0) + from);
      state_[n][i][0] = to_float(c.a), state_[n][i][1] = to_float(c.b);
    } else if constexpr (kGru) {
      state_[n][i][0] = to_float(h.a), state_[n][i][1] = to_float(h.b);
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
        const RecurrentSlot& now = ring_->at(t, slot);
        const RecurrentSlot& next = ring_->at(t + 1, slot);
        if (now.live()) {
          const Two<T> h = cell(now, n, i, sums);
          if (!split_) {
            place_.write_tile(next_operand + slot * plan_.tile_stride + place_.unit, h);
          }
        }
        fetch(next, n, i);
        if (next.enters()) enter(next, slot, n, i, next_operand);
      }
    }
  }

  /// The sums of two units of one row become gates and the new state, which are written.
  __device__ Two<T> cell(const RecurrentSlot& now, int n, int i,
                         const float (&sums)[kGates][2][4]) {
    float h[2], kept[2][kGates], hn[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float pre[kGates];
#pragma unroll
      for (int g = 0; g < kGates; ++g) {
        const Two<T>& x = inputs_[n][i][g];
        const float b = bias_[g * plan_.units + place_.local + j];
        pre[g] = to_float(j == 0 ? x.a : x.b) + b;
        if (!(kGru && g == 2)) pre[g] += sums[g][n][j * 2 + i];
      }
      float& state = state_[n][i][j];
      if constexpr (kLstm) {
        const float in = sigmoid(pre[0]), forget = sigmoid(pre[1]);
        const float candidate = activate(pre[2]), out = sigmoid(pre[3]);
        state = forget * state + in * candidate;
        h[j] = out * activate(state);
        kept[j][0] = in, kept[j][1] = forget, kept[j][2] = candidate, kept[j][3] = out;
      } else if constexpr (kGru) {
        const float reset = sigmoid(pre[0]), update = sigmoid(pre[1]);
        hn[j] = sums[2][n][j * 2 + i] + bias_[3 * plan_.units + place_.local + j];
        const float candidate = activate(pre[2] + reset * hn[j]);
        state = candidate + update * (state - candidate);
        h[j] = state;
        kept[j][0] = reset, kept[j][1] = update, kept[j][2] = candidate;
      } else {
        h[j] = activate(pre[0]);
      }
    }
    const Two<T> rounded{from_float<T>(h[0]), from_float<T>(h[1])};
    const std::int64_t at = now.token * place_.hidden + place_.unit;
    const std::int64_t end = std::int64_t{now.row} * place_.hidden + place_.unit;
    place_.write(static_cast<T*>(p_.output) + at, rounded);
    if (now.leaves()) place_.write(static_cast<T*>(p_.h_end) + end, rounded);
    if constexpr (kLstm) {
      const float (&c)[2] = state_[n][i];
      if (now.leaves()) {
        place_.write(static_cast<T*>(p_.c_end) + end,
                     Two<T>{from_float<T>(c[0]), from_float<T>(c[1])});
      }
      if (p_.cells != nullptr) place_.write(p_.cells + at, Two<float>{c[0], c[1]});
    }
    if constexpr (kGru) {
      if (p_.hn != nullptr) {
        place_.write(static_cast<T*>(p_.hn) + at,
                     Two<T>{from_float<T>(hn[0]), from_float<T>(hn[1])});
      }
    }
    if constexpr (kLstm || kGru) {
      if (p_.gates != nullptr) {
        T* to = static_cast<T*>(p_.gates) + now.token * kGates * place_.hidden + place_.unit;
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
          place_.write(to + g * place_.hidden,
                       Two<T>{from_float<T>(kept[0][g]), from_float<T>(kept[1][g])});
        }
      }
    }
    return rounded;
  }

  /// The states before step t of all units, from L2.
  __device__ void gather(int t) {
    const std::int64_t hidden = place_.hidden;
    const T* output = static_cast<const T*>(p_.output);
    const T* h0 = static_cast<const T*>(p_.h0);
    for (int slot = 0; slot < plan_.slots; ++slot) {
      const RecurrentSlot& now = ring_->at(t, slot);
      if (!now.live()) continue;
      T* to = operand_ + slot * plan_.tile_stride;
      if (!now.enters()) {
        gather_row(output + (now.token - 1) * hidden, place_.hidden, place_.whole_lines, to);
      } else if (h0 != nullptr) {
        gather_row(h0 + now.row * hidden, place_.hidden, place_.whole_lines, to);
      } else {
        for (int u = threadIdx.x; u < place_.hidden; u += blockDim.x) to[u] = from_float<T>(0.0f);
      }
    }
  }

  __device__ float activate(float x) const {
    return p_.activation == CellActivation::kTanh ? tanhf(x) : sigmoid(x);
  }

  const RecurrentForward& p_;
  const RecurrentPlan& plan_;
  const RecurrentPlace<M> place_;
  const bool split_;  // the block has some of the units, else all
  unsigned char* shared_;
  RecurrentRing* ring_;
  float* bias_;  // [gates (gru: 4)][units]
  T* operand_;   // [1 or 2][slots][tile_stride]: the states that the product reads
  Product product_;
  Two<T> inputs_[2][2][kGates]{};  // of the step to come
  float state_[2][2][2]{};         // lstm: cells; gru: hidden states
};

template <RecurrentCell C, RecurrentMath M>
__global__ void __launch_bounds__(32 * recurrent_most_warps(C), 1)
    recurrent_forward_kernel(const __grid_constant__ RecurrentForward layer) {
  SEQREC_SHARED(shared);
  Forward<C, M>(layer, shared).run();
}

template <RecurrentCell C, RecurrentMath M>
struct ForwardKernel {
  static void start(const RecurrentForward& layer, cudaStream_t stream) {
    const RecurrentPlan& plan = layer.plan;
    const dim3 grid = recurrent_grid(plan), block = recurrent_threads(plan);
    if (plan.barriers) {
      launch_cooperative(recurrent_forward_kernel<C, M>, grid, block, plan.shared, stream, layer);
    } else {
      launch(recurrent_forward_kernel<C, M>, grid, block, plan.shared, stream, layer);
    }
  }
};

}  // namespace

void launch_recurrent_forward(const RecurrentForward& layer, cudaStream_t stream) {
  start_recurrent<ForwardKernel>(layer, stream);
}

}  // namespace cuda
}  // namespace seqrec
