// The scalar tier: the same precisions on the same layouts in plain C++, one row at a time. It runs
// anywhere, needs no Highway, and is what the SIMD tiers are read against; it is not meant to be
// fast.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "dispatch/kernel_table.h"
#include "quant/elements.h"

namespace sightline {
namespace scalar {
namespace {

using namespace internal;  // NOLINT: the plain structs of the border

constexpr float kMaxP = 255.0f;
constexpr QuantizedScheme kScheme = {static_cast<int>(kMaxQuantum), static_cast<int>(kMaxP),
                                     kKvTile, nullptr};

float LoadSource(const SourceRows& rows, size_t i, size_t d) {
  return LoadElement(RowAt(rows, i), d);
}

float Sanitize(float x) { return isnan(x) ? 0.0f : std::clamp(x, -kLargestFinite, kLargestFinite); }

// Makes a row finite and returns its largest magnitude.
float FiniteRange(float* row, size_t n) {
  float range = 0.0f;
  for (size_t i = 0; i < n; ++i) {
    row[i] = Sanitize(row[i]);
    range = std::max(range, fabsf(row[i]));
  }
  return range;
}

struct QuantStep {
  float scale;
  float inverse;
};
QuantStep StepForRange(float range, float max_quantum) {
  if (range < kSmallestRange) return {0.0f, 0.0f};
  return {range * (1.0f / max_quantum), max_quantum / range};
}

int Quantize(float x, QuantStep step) { return static_cast<int>(lrintf(x * step.inverse)); }

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
float StoredToF32(float x) { return x; }
float StoredToF32(Half x) { return F32FromF16(x.bits); }
float StoredToF32(BFloat16 x) { return F32FromBF16(x.bits); }
void F32ToStored(float x, float* stored) { *stored = x; }
void F32ToStored(float x, Half* stored) { stored->bits = F16FromF32(x); }
void F32ToStored(float x, BFloat16* stored) { stored->bits = BF16FromF32(x); }

template <typename Stored>
void PackFloatValues(const PackTask& task) {
  const PackedShape& s = task.head.shape;
  const PackedOffsets& o = task.head.offsets;
  Stored* v = reinterpret_cast<Stored*>(task.head.base + o.v);
  for (size_t i = 0; i < task.num_keys; ++i) {
    const size_t key = task.key_begin + i;
    unsigned char* special = task.head.base + o.v_special + key / kKvTile;
    if (key % kKvTile == 0) *special = 0;
    for (size_t c = 0; c < PaddedVHeadDim(s); ++c) {
      Stored* stored = &v[VIndex(s, key, c)];
      F32ToStored(c < s.v_head_dim ? LoadSource(task.v, i, c) : 0.0f, stored);
      if (!isfinite(StoredToF32(*stored))) *special = 1;
      // Beside an even key of a pair is nothing yet.
      if (VDepth(s.layout) == 2 && key % 2 == 0) F32ToStored(0.0f, &v[VIndex(s, key + 1, c)]);
    }
  }
}

template <typename Stored>
void PackFloat(const PackTask& task, unsigned char*) {
  const PackedShape& s = task.head.shape;
  Stored* k = reinterpret_cast<Stored*>(task.head.base + task.head.offsets.k);
  for (size_t i = 0; i < task.num_keys; ++i) {
    for (size_t d = 0; d < PaddedHeadDim(s); ++d) {
      const float x = d < s.head_dim ? LoadSource(task.k, i, d) : 0.0f;
      F32ToStored(x, &k[KIndex(s, task.key_begin + i, d)]);
    }
  }
  PackFloatValues<Stored>(task);
}

// 127 steps of int8 that are kept; 0 where the scale is no use.
float KeptRange(float scale) {
  const float range = fabsf(scale) * kMaxQuantum;
  return range < kLargestFinite ? range : 0.0f;
}

// The whole number of steps next to a mean.
float WholeSteps(float mean, float scale) {
  const float step = fabsf(scale);
  const float steps = nearbyintf(mean / step);
  return KeptRange(scale) > 0.0f && fabsf(steps) >= kFewSteps ? steps * step : 0.0f;
}
// The scale that channel c of V has in all rows.
float VScale(const PackTask& task, size_t c) {
  const Row& first = task.v.first;
  return *ScaleAt(first.scale, static_cast<int64_t>(c) * first.scale_stride);
}

float MeanOfColumn(const SourceRows& rows, size_t num_rows, size_t d) {
  const size_t stride = CenterStride(num_rows);
  float sum = 0.0f;
  float count = 0.0f;
  for (size_t i = 0; i < num_rows; i += stride, ++count) sum += Sanitize(LoadSource(rows, i, d));
  return sum / count;
}

// Rotated K, in the order of quant/rotate-inl.h, where everything is explained.
void RotateRow(size_t head_dim, float* row) {
  const size_t block = RotationBlock(head_dim);
  for (size_t stride = 1; stride < block; stride *= 2) {
    for (size_t i = 0; i < head_dim; ++i) {
      if ((i & stride) != 0) continue;
      const float a = row[i];
      const float b = row[i + stride];
      row[i] = a + b;
      row[i + stride] = a - b;
    }
  }
  if (block == head_dim) return;
  const size_t width = std::max(block, kChannelAlign);
  float sums[kMaxHeadDim] = {};
  for (size_t i = 0; i < head_dim; ++i) sums[i % width] += row[i];
  for (size_t half = width / 2; half >= block; half /= 2) {
    for (size_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  const size_t num_blocks = head_dim / block;
  const float twice = 2.0f / static_cast<float>(num_blocks);
  for (size_t i = 0; i < head_dim; ++i) row[i] -= sums[i % block] * twice;
}

void BalanceChannels(const PackTask& task) {
  const PackedShape& s = task.head.shape;
  const float* k_center =
      reinterpret_cast<const float*>(task.head.base + task.head.offsets.k_center);
  float* q_factor = reinterpret_cast<float*>(task.head.base + task.head.offsets.q_factor);
  float size[kMaxHeadDim] = {};
  for (size_t key = 0; key < task.num_keys; key += CenterStride(task.num_keys)) {
    for (size_t d = 0; d < s.head_dim; ++d) {
      size[d] += fabsf(Sanitize(LoadSource(task.k, key, d)) - k_center[d]);
    }
  }
  float sorted[kMaxHeadDim];
  std::copy(size, size + s.head_dim, sorted);
  std::sort(sorted, sorted + s.head_dim);
  const float ordinary = std::max(sorted[s.head_dim / 2], sorted[s.head_dim - 1] * kSmallestMedian);
  for (size_t d = 0; d < RoundUp(s.head_dim, kChannelAlign); ++d) {
    q_factor[d] = RotationSign(d);
    for (const float threshold : kBalanceThresholds) {
      if (ordinary >= kSmallestRange && size[d] >= threshold * ordinary) q_factor[d] *= 2.0f;
    }
  }
}

void CenterKeys(const PackTask& task, unsigned char*) {
  const PackedShape& s = task.head.shape;
  float* k_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.k_center);
  for (size_t d = 0; d < s.head_dim; ++d) {
    k_center[d] = MeanOfColumn(task.k, task.num_keys, d);
    if (task.keeps_k) {
      const bool one_scale = task.k.scale_length_stride == 0;
      k_center[d] = WholeSteps(k_center[d], one_scale ? *task.k.first.scale : 0.0f);
    }
  }
  if (IsRotated(s.layout)) BalanceChannels(task);
}

void CenterQuantized(const PackTask& task, unsigned char* scratch) {
  CenterKeys(task, scratch);
  const PackedShape& s = task.head.shape;
  float* v_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.v_center);
  for (size_t c = 0; c < PaddedVHeadDim(s); ++c) {
    v_center[c] = c < s.v_head_dim ? MeanOfColumn(task.v, task.num_keys, c) : 0.0f;
    if (task.keeps_v && c < s.v_head_dim) v_center[c] = WholeSteps(v_center[c], VScale(task, c));
  }
}

// K in int8, with a bias, or in int16.
constexpr int BiasOf(uint8_t) { return kBias; }
constexpr int BiasOf(int16_t) { return 0; }
int MaxQuantumOf(uint8_t, size_t) { return static_cast<int>(kMaxQuantum); }
int MaxQuantumOf(int16_t, size_t head_dim) { return MaxWideQuantum(head_dim); }

template <typename KStored>
void PackQuantizedKeys(const PackTask& task) {
  const PackedShape& s = task.head.shape;
  const PackedOffsets& o = task.head.offsets;
  unsigned char* base = task.head.base;
  KStored* k = reinterpret_cast<KStored*>(base + o.k);
  float* k_scale = reinterpret_cast<float*>(base + o.k_scale);
  const float* k_center = reinterpret_cast<const float*>(base + o.k_center);
  const float* q_factor = reinterpret_cast<const float*>(base + o.q_factor);
  const float k_factor = 1.0f / static_cast<float>(RotationBlock(s.head_dim));
  const float max_k = static_cast<float>(MaxQuantumOf(KStored(), s.head_dim));

  float row[kMaxHeadDim];
  for (size_t i = task.num_keys_done; i < task.num_keys; ++i) {
    const size_t key = task.key_begin + i;
    for (size_t d = 0; d < s.head_dim; ++d) {
      row[d] = Sanitize(LoadSource(task.k, i, d)) - k_center[d];
    }
    if (IsRotated(s.layout)) {
      for (size_t d = 0; d < s.head_dim; ++d) row[d] *= k_factor / q_factor[d];
      RotateRow(s.head_dim, row);
    }
    float range = FiniteRange(row, s.head_dim);
    if (task.keeps_k) range = std::max(range, KeptRange(*RowAt(task.k, i).scale));
    const QuantStep step = StepForRange(range, max_k);
    k_scale[key] = step.scale;
    for (size_t d = 0; d < PaddedHeadDim(s); ++d) {
      const int q = d < s.head_dim ? Quantize(row[d], step) : 0;
      k[KIndex(s, key, d)] = static_cast<KStored>(q + BiasOf(KStored()));
    }
  }
}

void PackQuantizedValues(const PackTask& task) {
  const PackedShape& s = task.head.shape;
  const PackedOffsets& o = task.head.offsets;
  unsigned char* base = task.head.base;
  int8_t* v = reinterpret_cast<int8_t*>(base + o.v);
  float* v_scale =
      reinterpret_cast<float*>(base + o.v_scale) + task.key_begin / kKvTile * PaddedVHeadDim(s);
  const float* v_center = reinterpret_cast<const float*>(base + o.v_center);
  for (size_t c = 0; c < PaddedVHeadDim(s); ++c) {
    const auto centered = [&](size_t i) {
      return c < s.v_head_dim ? Sanitize(LoadSource(task.v, i, c)) - v_center[c] : 0.0f;
    };
    float range = 0.0f;
    if (task.keeps_v && c < s.v_head_dim) {
      range = KeptRange(VScale(task, c));
    }
    for (size_t i = 0; i < task.num_keys; ++i) range = std::max(range, fabsf(centered(i)));
    const QuantStep step = StepForRange(range, kMaxQuantum);
    v_scale[c] = step.scale;
    for (size_t i = 0; i < task.num_keys; ++i) {
      v[VIndex(s, task.key_begin + i, c)] = static_cast<int8_t>(Quantize(centered(i), step));
    }
  }
}

template <typename KStored>
void PackQuantized(const PackTask& task, unsigned char*) {
  PackQuantizedKeys<KStored>(task);
  PackQuantizedValues(task);
}

void PackMixed(const PackTask& task, unsigned char*) {
  PackQuantizedKeys<int16_t>(task);
  PackFloatValues<BFloat16>(task);
}

// One row's scores, by how K is stored: in units of log2.
template <typename Stored>
class FloatKeys {
 public:
  FloatKeys(const AttendTask& task, const float* q, size_t) : task_(task), shape_(task.head.shape) {
    for (size_t d = 0; d < shape_.head_dim; ++d) q_[d] = q[d] * task.scale_log2e;
  }
  // What scores lack: see NeedsScores.
  float Lack() const { return 0.0f; }
  float Score(size_t key) const {
    const auto* k = reinterpret_cast<const Stored*>(FindPage(task_, &key) + task_.head.offsets.k);
    float s = 0.0f;
    for (size_t d = 0; d < shape_.head_dim; ++d) {
      s += q_[d] * StoredToF32(k[KIndex(shape_, key, d)]);
    }
    return s;
  }

 private:
  const AttendTask& task_;
  const PackedShape& shape_;
  float q_[kMaxHeadDim];
};

template <typename KStored>
class QuantizedKeys {
 public:
  QuantizedKeys(const AttendTask& task, const float* q, size_t r)
      : task_(task), shape_(task.head.shape) {
    const unsigned char* base = task.head.base;
    const PackedOffsets& o = task.head.offsets;
    float row[kMaxHeadDim];
    std::copy(q, q + shape_.head_dim, row);
    float range = FiniteRange(row, shape_.head_dim);
    if (NeedsScores(task) && task.kv_len != 0) {
      const float* center = reinterpret_cast<const float*>(base + o.k_center);
      for (size_t d = 0; d < shape_.head_dim; ++d) lack_ += row[d] * center[d] * task.scale_log2e;
    }
    if (IsRotated(shape_.layout) && task.kv_len != 0) {
      const float* q_factor = reinterpret_cast<const float*>(base + o.q_factor);
      for (size_t d = 0; d < shape_.head_dim; ++d) row[d] *= q_factor[d];
      RotateRow(shape_.head_dim, row);
      range = FiniteRange(row, shape_.head_dim);
    } else if (HasPlainI8K(shape_.layout) && task.q.dtype == DType::kI8 &&
               task.q.scale.dim_stride == 0) {
      range = std::max(range, KeptRange(*RowAt(task.q, r).scale));
    }
    const QuantStep step =
        StepForRange(range, static_cast<float>(MaxQuantumOf(KStored(), shape_.head_dim)));
    row_scale_ = step.scale * task.scale_log2e;
    for (size_t d = 0; d < shape_.head_dim; ++d) q_[d] = Quantize(row[d], step);
  }
  float Lack() const { return lack_; }
  float Score(size_t key) const {
    const unsigned char* base = FindPage(task_, &key);
    const auto* k = reinterpret_cast<const KStored*>(base + task_.head.offsets.k);
    const auto* k_scale = reinterpret_cast<const float*>(base + task_.head.offsets.k_scale);
    uint32_t dot = 0;  // of quanta that no one packed it may leave 32 bits
    for (size_t d = 0; d < shape_.head_dim; ++d) {
      dot += static_cast<uint32_t>(q_[d] * (k[KIndex(shape_, key, d)] - BiasOf(KStored())));
    }
    return static_cast<float>(static_cast<int32_t>(dot)) * row_scale_ * k_scale[key];
  }

 private:
  const AttendTask& task_;
  const PackedShape& shape_;
  float row_scale_;
  float lack_ = 0.0f;
  int q_[kMaxHeadDim];
};

// And its sums of p·v over the first num_keys keys of a tile, by how V is stored; `p` is relative
// to the tile's maximum, and 0 for hidden keys.
template <typename Stored>
class FloatValues {
 public:
  explicit FloatValues(const AttendTask& task) : task_(task) {}
  float WeightedSum(const float* p, const bool* seen, size_t tile, size_t num_keys,
                    size_t c) const {
    const unsigned char* base = FindPage(task_, &tile);
    const auto* v = reinterpret_cast<const Stored*>(base + task_.head.offsets.v);
    float sum = 0.0f;
    for (size_t i = 0; i < num_keys; ++i) {
      if (!seen[i]) continue;  // 0 * NaN is NaN
      sum += p[i] * StoredToF32(v[VIndex(task_.head.shape, tile + i, c)]);
    }
    return sum;
  }
  float Center(size_t) const { return 0.0f; }

 private:
  const AttendTask& task_;
};

class QuantizedValues {
 public:
  explicit QuantizedValues(const AttendTask& task) : task_(task) {}
  float WeightedSum(const float* p, const bool*, size_t tile, size_t num_keys, size_t c) const {
    const PackedShape& shape = task_.head.shape;
    const PackedOffsets& offsets = task_.head.offsets;
    const unsigned char* base = FindPage(task_, &tile);
    const auto* v = reinterpret_cast<const int8_t*>(base + offsets.v);
    const auto* v_scale = reinterpret_cast<const float*>(base + offsets.v_scale);
    int32_t sum = 0;
    for (size_t i = 0; i < num_keys; ++i) {
      sum += static_cast<int32_t>(lrintf(kMaxP * p[i])) * v[VIndex(shape, tile + i, c)];
    }
    const float scale = v_scale[tile / kKvTile * PaddedVHeadDim(shape) + c];
    return static_cast<float>(sum) * (scale * (1.0f / kMaxP));
  }
  float Center(size_t c) const {
    return reinterpret_cast<const float*>(task_.head.base + task_.head.offsets.v_center)[c];
  }

 private:
  const AttendTask& task_;
};

// What a row keeps from part to part; see kernels/parts-inl.h.
struct RowState {
  float m;     // without `base`
  float base;  // the largest bias of a segment that has raised it, which would round it
  float d;
  float o[kMaxHeadDim];
};

size_t ScratchBytes(const PackedShape&) { return kTaskRows * sizeof(RowState); }

// True if a row sees the key; `range` is what its position says.
bool Sees(const AttendTask& task, const RowIndex& index, const KeyRange& range, size_t key) {
  const bool by_position = key < task.prefix_len || (range.begin <= key && key < range.limit);
  if (!by_position) return false;
  const TileKeys keys = KeysOfTile(task, key);
  if (keys == TileKeys::kNone) return false;
  if (keys == TileKeys::kSome && (task.pages.kept[key / 32] >> key % 32 & 1) == 0) return false;
  for (const MaskRows& mask : task.masks) {
    if (mask.data != nullptr && *MaskOf(mask, index, key) == 0) return false;
  }
  return true;
}

// A score in octaves after the modifications of the task.
float Modify(const AttendTask& task, size_t r, const RowIndex& index, size_t key, float s,
             float lack) {
  if (task.softcap_log2e != 0.0f) s = task.softcap_log2e * tanhf((s + lack) / task.softcap_log2e);
  if (task.bias.data != nullptr) s += LoadElement(RowAt(task.bias, r), key) * kLog2E;
  if (HasDistanceBias(task)) {
    const int64_t position = task.q_start + static_cast<int64_t>(index.query);
    s += BiasAt(task.distance_bias, index.head, static_cast<int64_t>(key) - position);
  }
  return s;
}

// What a row's sums are multiplied by; see kernels/store_output-inl.h.
float EndOfRow(const AttendTask& task, size_t r, float m, float d) {
  const float sink = task.sinks == nullptr
                         ? -INFINITY
                         : task.sinks[IndexOf(r, task.q.beams, task.q.group).head] * kLog2E;
  const float reference = d == 0.0f ? sink : std::max(m, sink);
  const float rescale = d == 0.0f ? 0.0f : exp2f(m - reference);
  const float sink_weight = sink == -INFINITY ? 0.0f : exp2f(sink - reference);
  const float total = d * rescale + sink_weight;
  if (task.lse.data != nullptr) {
    constexpr double kLn2 = 0.69314718055994530942;
    const double lse = total == 0.0f ? -HUGE_VAL : double{reference} * kLn2 + log(double{total});
    const float rounded = static_cast<float>(lse);
    memcpy(RowAt(task.lse, r).data, &rounded, sizeof(rounded));
  }
  return d == 0.0f ? 0.0f : rescale / total;
}

template <class Keys, class Values>
void AttendRow(const AttendTask& task, size_t r, RowState& state) {
  const PackedShape& shape = task.head.shape;
  const Row q_row = RowAt(task.q, r);
  float q[kMaxHeadDim];
  for (size_t d = 0; d < shape.head_dim; ++d) q[d] = LoadElement(q_row, d);
  const Keys keys(task, q, r);
  const Values values(task);

  const RowIndex index = IndexOf(r, task.q.beams, task.q.group);
  const KeyRange range = RangeOf(task, r);
  const size_t limit = std::max(range.limit, task.prefix_len);
  const float lack = LackAtEnd(task, keys.Lack());
  const float bias = SegmentBias(task, index);
  if (!task.continues) {
    state.m = -INFINITY;
    state.base = 0.0f;
    state.d = 0.0f;
    std::fill(state.o, state.o + shape.v_head_dim, 0.0f);
  }
  const float before_m = state.m - (lack + (bias - state.base));
  float m = before_m;
  float denominator = state.d;
  float part = 0.0f;  // of the denominator: this part's
  float* o = state.o;
  for (size_t begin = 0; begin < limit; begin += kKvTile) {
    if (KeysOfTile(task, begin) == TileKeys::kNone) continue;
    const size_t num_keys = std::min(kKvTile, limit - begin);
    float p[kKvTile];
    bool seen[kKvTile];
    float tile_m = -INFINITY;
    for (size_t i = 0; i < num_keys; ++i) {
      const size_t key = begin + i;
      seen[i] = Sees(task, index, range, key);
      p[i] = seen[i] ? Modify(task, r, index, key, keys.Score(key), keys.Lack()) : -INFINITY;
      tile_m = std::max(tile_m, p[i]);
    }
    const float new_m = std::max(m, tile_m);
    const float reference = new_m == -INFINITY ? 0.0f : new_m;
    const float tile_reference = tile_m == -INFINITY ? 0.0f : tile_m;
    const float rescale = exp2f(m - reference);
    const float weight = exp2f(tile_m - reference);
    float sum = 0.0f;
    for (size_t i = 0; i < num_keys; ++i) {
      p[i] = exp2f(p[i] - tile_reference);
      sum += p[i];
    }
    for (size_t c = 0; c < shape.v_head_dim; ++c) {
      o[c] = o[c] * rescale + weight * values.WeightedSum(p, seen, begin, num_keys, c);
    }
    denominator = denominator * rescale + weight * sum;
    part = part * rescale + weight * sum;
    m = new_m;
  }
  for (size_t c = 0; part != 0.0f && c < shape.v_head_dim; ++c) o[c] += part * values.Center(c);
  if (m != before_m) {  // else it is as it was, to the bit
    if (state.m == -INFINITY || bias > state.base) state.base = bias;
    state.m = m + (lack + (bias - state.base));
  }
  state.d = denominator;
  if (task.pauses) return;

  const Row out_row = RowAt(task.out, r);
  const float o_factor = EndOfRow(task, r, state.m + state.base, state.d);
  for (size_t c = 0; c < shape.v_head_dim; ++c) {
    StoreElement(o_factor == 0.0f ? 0.0f : o[c] * o_factor, out_row, c);
  }
}

template <class Keys, class Values>
void Attend(const AttendTask& task, unsigned char* scratch) {
  RowState* states = reinterpret_cast<RowState*>(scratch);
  for (size_t r = task.row_begin; r < task.row_end; ++r) {
    AttendRow<Keys, Values>(task, r, states[r - task.row_begin]);
  }
}

template <class Keys, class Values>
void AttendAll(const AttendTask& first, unsigned char* scratch) {
  for (const AttendTask* task = &first; task != nullptr; task = task->next) {
    Attend<Keys, Values>(*task, scratch);
  }
}

// Weights of a row from its lse; see kernels/weights-inl.h.
template <class Keys>
void WeighRow(const AttendTask& task, size_t r) {
  const WeightsTask& weights = task.weights;
  const Row q_row = RowAt(task.q, r);
  float q[kMaxHeadDim];
  for (size_t d = 0; d < task.head.shape.head_dim; ++d) q[d] = LoadElement(q_row, d);
  const Keys keys(task, q, r);
  const RowIndex index = IndexOf(r, task.q.beams, task.q.group);
  const KeyRange range = RangeOf(task, r);
  float lse = 0.0f;
  memcpy(&lse, RowAt(task.lse, r).data, sizeof(lse));
  const float offset = LackAtEnd(task, keys.Lack()) + SegmentBias(task, index);
  const float reference = lse == -INFINITY ? 0.0f : lse * kLog2E - offset;
  const auto add = [](float x, const Row& row, size_t key) {
    StoreElement(LoadElement(row, key) + x, row, key);
  };
  for (size_t key = 0; key < weights.num_keys; ++key) {
    float p = 0.0f;
    if (key < task.kv_len && Sees(task, index, range, key)) {
      p = exp2f(Modify(task, r, index, key, keys.Score(key), keys.Lack()) - reference) *
          weights.factor;
    }
    if (weights.mass.data != nullptr) add(p, weights.mass, key);
    if (weights.out.data == nullptr) continue;
    const Row row = RowAt(weights.out, r - weights.first_row);
    if (weights.adds) {
      add(p, row, key);
    } else {
      StoreElement(p, row, key);
    }
  }
}

template <class Keys>
void Weigh(const AttendTask& task, unsigned char*) {
  for (size_t r = task.row_begin; r < task.row_end; ++r) WeighRow<Keys>(task, r);
}

// Rows are taken one by one: one driver serves any number of them.
template <class Keys, class Values>
constexpr PrecisionKernels KernelsOf(LayoutId layout, PackFunction center, PackFunction pack) {
  return {layout,
          HasQuantizedV(layout) ? &kScheme : nullptr,
          false,
          &ScratchBytes,
          &Attend<Keys, Values>,
          &AttendAll<Keys, Values>,
          kTaskRows,
          false,
          &Weigh<Keys>,
          &Weigh<Keys>,
          center,
          pack};
}

}  // namespace

const internal::KernelTable& GetTable();  // dispatch/tiers.cc declares it for every tier

const internal::KernelTable& GetTable() {
  static constexpr internal::KernelTable kTable = {
      "scalar",
      {
          KernelsOf<FloatKeys<float>, FloatValues<float>>(LayoutId::kF32, nullptr,
                                                          &PackFloat<float>),
          KernelsOf<FloatKeys<Half>, FloatValues<Half>>(LayoutId::kF16, nullptr, &PackFloat<Half>),
          KernelsOf<QuantizedKeys<uint8_t>, QuantizedValues>(LayoutId::kI8BiasedK, &CenterQuantized,
                                                             &PackQuantized<uint8_t>),
          KernelsOf<QuantizedKeys<int16_t>, QuantizedValues>(LayoutId::kI8Fine, &CenterQuantized,
                                                             &PackQuantized<int16_t>),
          KernelsOf<FloatKeys<BFloat16>, FloatValues<BFloat16>>(LayoutId::kBF16, nullptr,
                                                                &PackFloat<BFloat16>),
          KernelsOf<QuantizedKeys<int16_t>, FloatValues<BFloat16>>(LayoutId::kMixed16, &CenterKeys,
                                                                   &PackMixed),
      }};
  return kTable;
}

}  // namespace scalar
}  // namespace sightline
