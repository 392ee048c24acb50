// The loops of native.cpp, written once on vectors of WIDTH floats and compiled for several
// instruction sets: native.cpp includes this file once for each, within a namespace of its own.
//
// Notation, as in the Python files: a = z_y - log sum_{j != y} exp z_j; m is the top competitor
// clamped to the finite range ("shift"), s = sum_{j != y} exp(z_j - m) ("total").

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

#define INLINE_TEMPLATE inline __attribute__((always_inline))
#define INLINE static inline __attribute__((always_inline))

INLINE Floats spread(float x) { return x - Floats{}; }
INLINE Ints spread(int32_t x) { return x - Ints{}; }

INLINE Ints lanes() {
  Ints result;
  for (int i = 0; i < WIDTH; ++i) result[i] = i;
  return result;
}

INLINE float sum(Floats x) {
  float result = 0;
  for (int i = 0; i < WIDTH; ++i) result += x[i];
  return result;
}

// The larger and the smaller of two, the second where either is NaN: single instructions that GCC
// does not find by itself, as for the conversion of halves below.
#if WIDTH == 16
INLINE Floats larger(Floats x, Floats y) { return (Floats)_mm512_max_ps((__m512)x, (__m512)y); }
INLINE Floats smaller(Floats x, Floats y) { return (Floats)_mm512_min_ps((__m512)x, (__m512)y); }
#elif WIDTH == 8
INLINE Floats larger(Floats x, Floats y) { return (Floats)_mm256_max_ps((__m256)x, (__m256)y); }
INLINE Floats smaller(Floats x, Floats y) { return (Floats)_mm256_min_ps((__m256)x, (__m256)y); }
#else
INLINE Floats larger(Floats x, Floats y) { return x > y ? x : y; }
INLINE Floats smaller(Floats x, Floats y) { return x < y ? x : y; }
#endif

INLINE Floats max(Floats x, Floats top) { return larger(x, top); }  // passes over a NaN in x

INLINE float max(Floats x) {
  float result = x[0];
  for (int i = 1; i < WIDTH; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

INLINE float finite(float x) { return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x; }

// exp(x) for -87 <= x <= 89; NaN stays NaN. x = n log 2 + r with |r| <= log(2)/2, and exp r by a
// polynomial (Chebyshev fit, relative error 1e-8). Adding 1.5 * 2^23 leaves n in the low bits.
INLINE Floats exp_between(Floats x) {
  const Floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = 1.393365249e-3f * r + 8.363181545e-3f;
  p = p * r + 4.166646490e-2f;
  p = p * r + 1.666657697e-1f;
  p = p * r + 5.000000013e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (Floats)(((Ints)shifted << 23) + 0x3f800000);
}

INLINE Floats within(float low, Floats x, float high) {
  return larger(spread(low), smaller(spread(high), x));
}

// exp(min(x, 0)), never 0: for sums in which another term is 1.
INLINE Floats exp_for_sum(Floats x) { return exp_between(within(-87.0f, x, 0.0f)); }

// exp(min(x, 0)), 0 below the smallest normal number.
INLINE Floats exp_or_zero(Floats x) {
  const Floats result = exp_for_sum(x);
  return x < -87.0f ? Floats{} : result;
}

// log(x) for finite x >= 1; NaN stays NaN. x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt 2].
INLINE Floats log_above_one(Floats x) {
  Ints n = ((Ints)x - 0x3f3504f3) >> 23;
  Floats f = (Floats)((Ints)x - (n << 23)) - 1.0f;
  Floats k = __builtin_convertvector(n, Floats);
  Floats p = 7.149753962e-2f * f - 1.157120087e-1f;
  p = p * f + 1.166151111e-1f;
  p = p * f - 1.241105066e-1f;
  p = p * f + 1.424993653e-1f;
  p = p * f - 1.666848024e-1f;
  p = p * f + 2.000070748e-1f;
  p = p * f - 2.499998905e-1f;
  p = p * f + 3.333333119e-1f;
  Floats low = k * -2.12194440e-4f + f * f * (p * f - 0.5f);
  return x == x ? k * 0.693359375f + (f + low) : x;
}

// ---- elements as float, whatever they are stored as ----------------------------------------

INLINE Floats load(const float* z) {
  Floats x;
  std::memcpy(&x, z, sizeof x);
  return x;
}

INLINE void store(float* z, Floats x) { std::memcpy(z, &x, sizeof x); }

INLINE Words load_words(const void* z) {
#if WIDTH == 16
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)z));
#elif WIDTH == 8
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)z));
#else
  Halves x;
  std::memcpy(&x, z, sizeof x);
  return __builtin_convertvector(x, Words);
#endif
}

INLINE void store_words(void* z, Words bits) {
#if WIDTH == 16
  _mm256_storeu_si256((__m256i*)z, _mm512_cvtepi32_epi16((__m512i)bits));
#else
  Halves x = __builtin_convertvector(bits, Halves);
  std::memcpy(z, &x, sizeof x);
#endif
}

INLINE Floats load(const BFloat16* z) { return (Floats)(load_words(z) << 16); }

INLINE Words round_to_bfloat16(Words bits) { return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; }

INLINE void store(BFloat16* z, Floats x) {  // to nearest, ties to even; NaN stays NaN
  store_words(z, x == x ? round_to_bfloat16((Words)x) : ((Words)x >> 16) | 0x40);
}

INLINE Floats load(const Float16* z) {
  Words half = load_words(z);
  Words magnitude = (half & 0x7fff) << 13;
  Words special = (Words)((half & 0x7c00) == 0x7c00) & 0x7f800000;
  Words bits = (Words)((Floats)magnitude * 0x1p112f) | special;
  return (Floats)(bits | ((half & 0x8000) << 16));
}

INLINE void store(Float16* z, Floats x) {  // to nearest, ties to even; NaN stays NaN
  Words bits = (Words)x, magnitude = bits & 0x7fffffff;
  Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  Words small = (Words)((Floats)magnitude + 0.5f) - 0x3f000000;  // the addition does the rounding
  Words half = magnitude < 0x38800000 ? small : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 - Words{} : half;
  half = magnitude > 0x7f800000 ? 0x7e00 - Words{} : half;
  store_words(z, half | ((bits >> 16) & 0x8000));
}

// The same where no x is NaN.
template <class T>
INLINE void store_number(T* z, Floats x) { store(z, x); }

template <>
INLINE_TEMPLATE void store_number(BFloat16* z, Floats x) {
  store_words(z, round_to_bfloat16((Words)x));
}

// The first elements of a vector, filled up with `fill`; nothing beyond them is touched.
#if WIDTH == 16
INLINE Floats load_part(const float* z, int64_t count, float fill) {
  return (Floats)_mm512_mask_loadu_ps((__m512)spread(fill), (__mmask16)((1 << count) - 1), z);
}
INLINE void store_part(float* z, Floats x, int64_t count) {
  _mm512_mask_storeu_ps(z, (__mmask16)((1 << count) - 1), (__m512)x);
}
#elif WIDTH == 8
INLINE Floats load_part(const float* z, int64_t count, float fill) {
  const Ints mask = lanes() < (int32_t)count;
  return mask ? (Floats)_mm256_maskload_ps(z, (__m256i)mask) : spread(fill);
}
INLINE void store_part(float* z, Floats x, int64_t count) {
  _mm256_maskstore_ps(z, (__m256i)(lanes() < (int32_t)count), (__m256)x);
}
#endif

template <class T>
INLINE Floats load_part(const T* z, int64_t count, float fill) {
  T part[WIDTH];
  std::memset(part, 0, sizeof part);
  for (int64_t i = 0; i < count; ++i) part[i] = z[i];
  return lanes() < (int32_t)count ? load(part) : spread(fill);
}

template <class T>
INLINE void store_part(T* z, Floats x, int64_t count) {
  T part[WIDTH];
  store(part, x);
  for (int64_t i = 0; i < count; ++i) z[i] = part[i];
}

template <class T>
INLINE Floats load_any(const T* z, int64_t count, float fill) {
  return __builtin_expect(count >= WIDTH, 1) ? load(z) : load_part(z, count, fill);
}

template <class T>
INLINE void store_any(T* z, Floats x, int64_t count) {
  if (count >= WIDTH) store(z, x);
  else store_part(z, x, count);
}

static_assert(FEW >= WIDTH, "the row loops read a whole vector of the row's last classes");

// ---- rows whose classes lie side by side ---------------------------------------------------

struct Competitors {
  float top, shift;
  double total;
};

// The last classes before `end` that fill no vector, the others -inf; none before the row's begin.
template <class T>
INLINE Floats load_rest(const T* z, int64_t begin, int64_t end) {
  if (end < WIDTH) return load_part(z + begin, end - begin, -INFINITY);
  return lanes() < spread((int32_t)(WIDTH - (end - begin))) ? spread(-INFINITY)
                                                            : load(z + end - WIDTH);
}

// Asks for what will be read one page on: the processor's own prefetching stops at the page's end.
template <class T>
INLINE void fetch_ahead(const T* z, int64_t count) {
  const char* first = (const char*)z + AHEAD;
  for (int64_t i = 0; i < count * (int64_t)sizeof(T); i += 64) __builtin_prefetch(first + i);
}

template <class T>
INLINE Floats top_of(const T* z, int64_t j, int64_t end, Floats top) {
  Floats top1 = top, top2 = top, top3 = top;
  for (; j + 4 * WIDTH <= end; j += 4 * WIDTH) {
    fetch_ahead(z + j, 4 * WIDTH);
    top = max(load(z + j), top);
    top1 = max(load(z + j + WIDTH), top1);
    top2 = max(load(z + j + 2 * WIDTH), top2);
    top3 = max(load(z + j + 3 * WIDTH), top3);
  }
  for (; j + WIDTH <= end; j += WIDTH) top = max(load(z + j), top);
  if (j < end) top1 = max(load_rest(z, j, end), top1);
  return max(max(top, top1), max(top2, top3));
}

template <class T>
INLINE Floats sum_of(const T* z, int64_t j, int64_t end, Floats shift) {
  Floats sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  for (; j + 4 * WIDTH <= end; j += 4 * WIDTH) {
    sum0 += exp_for_sum(load(z + j) - shift);
    sum1 += exp_for_sum(load(z + j + WIDTH) - shift);
    sum2 += exp_for_sum(load(z + j + 2 * WIDTH) - shift);
    sum3 += exp_for_sum(load(z + j + 3 * WIDTH) - shift);
  }
  for (; j + WIDTH <= end; j += WIDTH) sum0 += exp_for_sum(load(z + j) - shift);
  if (j < end) sum1 += exp_or_zero(load_rest(z, j, end) - shift);
  return (sum0 + sum1) + (sum2 + sum3);
}

// Top and sum over the classes other than `skip`, in blocks that stay in the first-level cache.
template <class T>
INLINE Competitors survey(const T* z, int64_t classes, int64_t skip) {
  Competitors row = {-INFINITY, -FLT_MAX, 0};
  for (int64_t start = 0; start < classes; start += BLOCK) {
    const int64_t stop = std::min<int64_t>(start + BLOCK, classes);
    const int64_t before = std::min(std::max(skip, start), stop);
    const int64_t after = std::min(std::max(skip + 1, start), stop);
    const Floats tops = top_of(z, start, before, spread(-INFINITY));
    const float top = max(top_of(z, after, stop, tops));
    if (top > row.top) {
      const float shift = finite(top);
      row.total *= std::exp(std::min(row.shift - shift, 0.0f));
      row.top = top;
      row.shift = shift;
    }
    const Floats shift = spread(row.shift);
    row.total += sum(sum_of(z, start, before, shift) + sum_of(z, after, stop, shift));
  }
  if (row.top == -INFINITY && row.total == row.total) row.total = 0;  // no competitor but -inf
  return row;
}

template <class T>
static void row_statistics(const Layout& at, const T* z, const int64_t* target, float* log_odds,
                           float* shift, float* total, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = z + at.row(i, at.input);
    const Competitors others = survey(row, at.classes, target[i]);
    const float own = to_float(row[target[i]]);
    log_odds[i] = (float)((double)own - others.top - std::log(others.total));
    shift[i] = others.shift;
    total[i] = (float)others.total;
  }
}

template <class T>
static void row_gradient(const Layout& at, const T* z, const int64_t* target, const float* shift,
                         const float* total, const float* upstream, T* out, int64_t begin,
                         int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = z + at.row(i, at.input);
    T* result = out + at.row(i, at.output);
    const float g = total[i] == 0 ? 0 : upstream[i];
    if (g == 0 && total[i] == total[i]) {  // nothing to look at: an ignored or a settled row
      std::memset(result, 0, at.classes * sizeof(T));
      continue;
    }
    const float factor = -g / total[i];
    if (!(std::fabs(factor) <= FLT_MAX)) {  // NaN among the logits, or an upstream that is not finite
      for (int64_t j = 0; j < at.classes; ++j) {
        const float x = to_float(row[j]), e = std::exp(std::min(x - shift[i], 0.0f));
        result[j] = from_float<T>(x == x ? e * factor : x);
      }
      result[target[i]] = from_float<T>(g);
      continue;
    }
    const Floats m = spread(shift[i]), scale = spread(factor);
    const Floats last = load(row + at.classes - WIDTH);  // before `out` may overwrite it
    for (int64_t j = 0; j + WIDTH <= at.classes; j += WIDTH) {
      fetch_ahead(row + j, WIDTH);
      store_number(result + j, exp_or_zero(load(row + j) - m) * scale);
    }
    store_number(result + at.classes - WIDTH, exp_or_zero(last - m) * scale);
    result[target[i]] = from_float<T>(g);
  }
}

// ---- many positions at once: classes apart as in (N, C, H, W), or few of them ---------------
//
// WIDTH positions (fewer at the end) are worked on together, their classes `step` elements apart.

template <class T>
INLINE void columns_statistics(const T* z, int64_t step, int64_t count, int64_t classes,
                               const int64_t* target, float* log_odds, float* shift, float* total) {
  Ints own = spread(-1);
  for (int64_t k = 0; k < count; ++k) own[k] = (int32_t)target[k];
  Floats top = spread(-INFINITY), mine = {}, sum = {};
  for (int64_t c = 0; c < classes; ++c) {
    const Floats x = load_any(z + c * step, count, 0);
    const Ints here = own == spread((int32_t)c);
    top = here ? top : max(x, top);
    mine = here ? x : mine;
  }
  Floats m = top > FLT_MAX ? spread(FLT_MAX) : top;
  m = m < -FLT_MAX ? spread(-FLT_MAX) : m;
  for (int64_t c = 0; c < classes; ++c) {
    const Floats weight = exp_or_zero(load_any(z + c * step, count, 0) - m);
    sum += own == spread((int32_t)c) ? Floats{} : weight;
  }
  const Floats log_sum = sum == 0.0f ? spread(-INFINITY) : log_above_one(sum);
  store_any(log_odds, mine - top - log_sum, count);
  store_any(shift, m, count);
  store_any(total, sum, count);
}

template <class T>
INLINE void columns_gradient(const T* z, int64_t step, int64_t count, int64_t classes,
                             const int64_t* target, const float* shift, const float* total,
                             const float* upstream, T* out, int64_t out_step) {
  Ints own = spread(-1);
  for (int64_t k = 0; k < count; ++k) own[k] = (int32_t)target[k];
  const Floats m = load_any(shift, count, 0), sum = load_any(total, count, 0);
  const Floats g = sum == 0.0f ? Floats{} : load_any(upstream, count, 0);
  const Floats scale = sum == 0.0f ? Floats{} : -g / sum;
  for (int64_t c = 0; c < classes; ++c) {
    const Floats x = load_any(z + c * step, count, 0);
    const Floats others = exp_or_zero(x - m) * scale;
    store_any(out + c * out_step, own == spread((int32_t)c) ? g : others, count);
  }
}

template <class T>
static void column_statistics(const Layout& at, const T* z, const int64_t* target, float* log_odds,
                              float* shift, float* total, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    const int64_t count = std::min<int64_t>({WIDTH, end - i, at.inner - i % at.inner});
    columns_statistics(z + at.row(i, at.input), at.input.classes, count, at.classes, target + i,
                       log_odds + i, shift + i, total + i);
    i += count;
  }
}

template <class T>
static void column_gradient(const Layout& at, const T* z, const int64_t* target,
                            const float* shift, const float* total, const float* upstream, T* out,
                            int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    const int64_t count = std::min<int64_t>({WIDTH, end - i, at.inner - i % at.inner});
    columns_gradient(z + at.row(i, at.input), at.input.classes, count, at.classes, target + i,
                     shift + i, total + i, upstream + i, out + at.row(i, at.output),
                     at.output.classes);
    i += count;
  }
}

// Rows of few classes, WIDTH of them turned into columns.

template <class T>
INLINE void gather(const Layout& at, const T* z, int64_t i, int64_t count, T* tile) {
  for (int64_t k = 0; k < count; ++k) {
    const T* row = z + at.row(i + k, at.input);
    for (int64_t c = 0; c < at.classes; ++c) tile[c * WIDTH + k] = row[c];
  }
}

template <class T>
static void few_statistics(const Layout& at, const T* z, const int64_t* target, float* log_odds,
                           float* shift, float* total, int64_t begin, int64_t end) {
  T tile[FEW * WIDTH] = {};
  for (int64_t i = begin; i < end; i += WIDTH) {
    const int64_t count = std::min<int64_t>(WIDTH, end - i);
    gather(at, z, i, count, tile);
    columns_statistics(tile, WIDTH, count, at.classes, target + i, log_odds + i, shift + i,
                       total + i);
  }
}

template <class T>
static void few_gradient(const Layout& at, const T* z, const int64_t* target, const float* shift,
                         const float* total, const float* upstream, T* out, int64_t begin,
                         int64_t end) {
  T tile[FEW * WIDTH] = {};
  for (int64_t i = begin; i < end; i += WIDTH) {
    const int64_t count = std::min<int64_t>(WIDTH, end - i);
    gather(at, z, i, count, tile);
    columns_gradient(tile, WIDTH, count, at.classes, target + i, shift + i, total + i,
                     upstream + i, tile, WIDTH);
    for (int64_t k = 0; k < count; ++k) {
      T* row = out + at.row(i + k, at.output);
      for (int64_t c = 0; c < at.classes; ++c) row[c] = tile[c * WIDTH + k];
    }
  }
}

// ---- every class's log-odds ----------------------------------------------------------------
//
// With t the top class, R = sum_{j != t} exp(z_j - z_t) and e_k = exp(z_k - z_t), the competitors
// of k != t weigh D_k = 1 + (R - e_k): nothing cancels beside the 1. The top class's own are s, m.

template <class T>
INLINE int64_t top_class(const T* z, int64_t classes) {
  Floats top = spread(-INFINITY);
  Ints place = spread(0);
  for (int64_t j = 0; j < classes; j += WIDTH) {
    const Floats x = load_any(z + j, classes - j, -INFINITY);
    place = x > top ? spread((int32_t)j) + lanes() : place;
    top = max(x, top);
  }
  const float best = max(top);
  int64_t result = classes;
  for (int i = 0; i < WIDTH; ++i)
    if (top[i] == best) result = std::min<int64_t>(result, place[i]);
  return std::min(result, classes - 1);
}

template <class T>
INLINE Ranking rank(const T* row, int64_t classes) {
  Ranking r;
  r.top = top_class(row, classes);
  const Competitors others = survey(row, classes, r.top);
  r.best = to_float(row[r.top]);
  r.own = (float)((double)r.best - others.top - std::log(others.total));
  r.shift = others.shift;
  r.total = (float)others.total;
  r.rest = (float)(others.total * std::exp(std::min(others.shift - finite(r.best), 0.0f)));
  return r;
}

// q_j = exp(z_j - m)/s and D_j for WIDTH classes that are not the top one.
struct Share {
  Floats q, d;
};

INLINE Share share_of(Floats x, const Ranking& r, float to_q) {
  const Floats q = exp_or_zero(x - r.shift) * to_q;
  const Floats d = (1 + r.rest) - q * r.rest;
  return {q, d < 1.0f ? spread(1.0f) : d};  // below 1 by rounding only
}

INLINE float per_total(const Ranking& r) { return r.total == 0 ? 0 : 1 / r.total; }

// log(1 - u) for 0 <= u <= 1/16, to 1e-9.
INLINE Floats log_below_one(Floats u) {
  return -u * (1.0f + u * (0.5f + u * (0.33333333f + u * (0.25f + u * (0.2f + u * 0.16666667f)))));
}

INLINE bool all(Ints mask) {
#if WIDTH == 16
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif WIDTH == 8
  return _mm256_movemask_ps((__m256)mask) == 0xff;
#else
  return mask[0] & mask[1] & mask[2] & mask[3];
#endif
}

// Log-odds of the classes from begin to end, and their q where there is room for it.
template <class T>
INLINE void row_odds(const T* row, const Ranking& r, int64_t begin, int64_t end, float* result,
                     float* q) {
  const float to_q = per_total(r), whole = 1 + r.rest, log_whole = std::log(whole);
  for (int64_t j = begin; j < end; j += WIDTH) {
    const Floats x = load_any(row + j, end - j, 0);
    const Share s = share_of(x, r, to_q);
    const Floats u = s.q * (r.rest / whole);
    const Floats log_d = all(u <= 0.0625f) ? log_whole + log_below_one(u) : log_above_one(s.d);
    store_any(result + (j - begin), x - r.best - log_d, end - j);
    if (q) store_any(q + (j - begin), s.q, end - j);
  }
  if (r.top >= begin && r.top < end) result[r.top - begin] = r.own;
}

template <class T>
static void all_statistics(const Layout& at, const T* z, Ranking* ranks, float* log_odds,
                           int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = z + at.row(i, at.input);
    ranks[i] = rank(row, at.classes);
    row_odds(row, ranks[i], 0, at.classes, log_odds + i * at.classes, nullptr);
  }
}

// dL/dz_j = G_j - e_j (T - G_j/D_j) - q_j G_t for j != t, and G_t - T for t, where
// T = sum_{k != t} G_k/D_k and q_j = exp(z_j - m)/s = e_j/R.
// `h` holds G and is overwritten by G/D; `q` lies beside it.
template <class T>
INLINE void row_all_gradient(const Ranking& r, float* h, const float* q, T* result, int64_t classes) {
  const float top_grad = r.total == 0 ? 0 : h[r.top];
  const Floats whole = spread(1 + r.rest);
  Floats sums = {};
  h[r.top] = 0;
  for (int64_t j = 0; j < classes; j += WIDTH) {
    const Floats d = whole - load_any(q + j, classes - j, 0) * r.rest;
    const Floats share = load_any(h + j, classes - j, 0) / (d < 1.0f ? spread(1.0f) : d);
    sums += share;
    store_any(h + j, share, classes - j);
  }
  const float others = sum(sums);
  for (int64_t j = 0; j < classes; j += WIDTH) {
    const Floats x = load_any(q + j, classes - j, 0), e = x * r.rest, share = load_any(h + j, classes - j, 0);
    const Floats d = whole - e;
    store_any(result + j, share * (d < 1.0f ? spread(1.0f) : d) - e * (others - share) - x * top_grad, classes - j);
  }
  result[r.top] = from_float<T>(top_grad - others);
}

template <class T>
static void all_gradient(const Layout& at, const T* z, const Ranking* ranks, const float* upstream,
                         float* buffer, T* out, int64_t begin, int64_t end) {
  float *h = buffer, *q = buffer + at.classes;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = z + at.row(i, at.input);
    const float to_q = per_total(ranks[i]);
    std::memcpy(h, upstream + i * at.classes, at.classes * sizeof(float));
    for (int64_t j = 0; j < at.classes; j += WIDTH)
      store_any(q + j, share_of(load_any(row + j, at.classes - j, 0), ranks[i], to_q).q, at.classes - j);
    row_all_gradient(ranks[i], h, q, out + at.row(i, at.output), at.classes);
  }
}

// ---- psi as a list of instructions ---------------------------------------------------------
//
// The functions have PyTorch's values to a few roundings, in the tails as well.

INLINE Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

// exp(x) for every x: beyond +-87 as a square, denormal results and overflow included.
INLINE Floats exponential(Floats x) {
  const Floats clamped = within(-104.0f, x, 90.0f);
  const Floats root = exp_between(clamped * 0.5f);
  return magnitude(x) > 87.0f ? root * root : exp_between(clamped);
}

INLINE Floats log_one_plus(Floats x) {  // x >= 0
  const Floats u = 1.0f + x;
  const Floats result = log_above_one(u) + (x - (u - 1.0f)) / u;
  return x > 1e38f ? (x > FLT_MAX ? x : log_above_one(x)) : result;
}

INLINE Floats logistic(Floats x) {
  const Floats t = exp_or_zero(-magnitude(x));
  return (x < 0.0f ? t : x == x ? spread(1.0f) : x) / (1.0f + t);
}

INLINE Floats soft_plus(Floats x) {
  const Floats t = exp_or_zero(-magnitude(x)), u = 1.0f + t;
  const Floats tail = log_above_one(u) + (t - (u - 1.0f));  // with the digits that u has lost
  return x > 0.0f ? x + tail : x == x ? tail : x;
}

template <class F>
INLINE Floats each(Floats x, const F& f) {
  for (int i = 0; i < WIDTH; ++i) x[i] = f(x[i]);
  return x;
}

INLINE Floats powers(Floats x, Floats y) {
  for (int i = 0; i < WIDTH; ++i) x[i] = std::pow(x[i], y[i]);
  return x;
}

INLINE Floats truth(Ints mask) { return (Floats)(mask & (Ints)spread(1.0f)); }

// One instruction over all rows of a chunk; a constant operand is a vector read again and again.
template <class F>
INLINE void run(const Instruction& step, float (*registers)[CHUNK], int64_t padded, const F& f) {
  Floats constants[3];
  const float* from[3];
  int64_t stride[3];
  for (int i = 0; i < 3; ++i) {
    const int32_t operand = step.operands[i];
    constants[i] = spread(step.constants[i]);
    from[i] = operand < 0 ? (const float*)&constants[-1 - operand] : registers[operand];
    stride[i] = operand < 0 ? 0 : 1;
  }
  float* result = registers[step.result];
  for (int64_t j = 0; j < padded; j += WIDTH)
    store(result + j, f(load(from[0] + j * stride[0]), load(from[1] + j * stride[1]),
                        load(from[2] + j * stride[2])));
}

#define CASE(code, expression) \
  case code: return run(step, registers, padded, [](Floats x, Floats y, Floats z) \
      __attribute__((always_inline)) { (void)y, (void)z; return expression; });

static void execute(const Instruction& step, float (*registers)[CHUNK], int64_t padded) {
  switch (step.code) {
    CASE(NEG, -x)
    CASE(ADD, x + y)
    CASE(SUB, x - y)
    CASE(MUL, x * y)
    CASE(GATE, x == 0.0f ? x : x * y)  // a slope of 0 stays 0 beside an infinity
    CASE(DIV, x / y)
    CASE(LE, truth(x <= y))
    CASE(LT, truth(x < y))
    CASE(GE, truth(x >= y))
    CASE(GT, truth(x > y))
    CASE(WHERE, x != 0.0f ? y : z)
    CASE(MIN, y < x ? y : x)  // clamps, whose y is a constant: NaN in x stays
    CASE(MAX, y > x ? y : x)
    CASE(SIGMOID, logistic(x))
    CASE(SOFTPLUS, soft_plus(x))
    CASE(LOGSIGMOID, -soft_plus(-x))
    CASE(EXP, exponential(x))
    CASE(LOG1P, log_one_plus(x))
    CASE(EXPM1, each(x, [](float v) { return std::expm1(v); }))
    CASE(POW, powers(x, y))
    CASE(SIN, each(x, [](float v) { return std::sin(v); }))
    CASE(COS, each(x, [](float v) { return std::cos(v); }))
    CASE(ISINF, truth(magnitude(x) > FLT_MAX))
  }
}
#undef CASE

// Runs the program over the log-odds from begin to end. Register 0 is a; the last instruction's is
// the result. It goes to out, times grad and scale where there is a grad; where there is no out, the
// sum is returned.
static double evaluate(const Instruction* program, int64_t length, const float* a,
                       const float* grad, int64_t grad_step, float scale, float* out,
                       int64_t begin, int64_t end) {
  alignas(64) float registers[REGISTERS][CHUNK];
  double total = 0;
  for (int64_t start = begin; start < end; start += CHUNK) {
    const int64_t used = std::min<int64_t>(CHUNK, end - start);
    const int64_t padded = (used + WIDTH - 1) / WIDTH * WIDTH;
    std::memset(registers[0] + padded - WIDTH, 0, WIDTH * sizeof(float));
    std::memcpy(registers[0], a + start, used * sizeof(float));
    for (int64_t k = 0; k < length; ++k) execute(program[k], registers, padded);
    const float* result = registers[program[length - 1].result];
    for (int64_t j = 0; j < used; ++j) {
      if (!out) total += result[j];
      else out[start + j] = grad ? result[j] * (grad[(start + j) * grad_step] * scale) : result[j];
    }
  }
  return total;
}

// ---- expected losses: sum_k share_k psi(a_k), for label smoothing and soft targets ------------
//
// Rows of few classes share a chunk, so that an instruction has many numbers to work on; a row of
// many is walked through chunk by chunk. Nothing of size (rows, classes) is written but the gradient.

// fill(row, first class, last class, place) for every row and piece of classes; then the program
// runs, and use(row, first class, last class, results) follows for each.
template <class Fill, class Use>
INLINE void by_chunks(int64_t classes, int64_t first, int64_t last, const Instruction* program,
                      int64_t length, const Fill& fill, const Use& use) {
  alignas(64) float registers[REGISTERS][CHUNK];
  const int64_t piece = std::min(classes, CHUNK);
  const float* result = registers[program[length - 1].result];
  for (int64_t from = 0; from < classes; from += piece) {
    const int64_t to = std::min(from + piece, classes), used = (last - first) * (to - from);
    const int64_t padded = (used + WIDTH - 1) / WIDTH * WIDTH;
    std::memset(registers[0] + padded - WIDTH, 0, WIDTH * sizeof(float));
    for (int64_t i = first; i < last; ++i) fill(i, from, to, registers[0] + (i - first) * (to - from));
    for (int64_t k = 0; k < length; ++k) execute(program[k], registers, padded);
    for (int64_t i = first; i < last; ++i) use(i, from, to, result + (i - first) * (to - from));
  }
}

INLINE int64_t rows_at_once(int64_t classes) { return std::max<int64_t>(1, CHUNK / classes); }

// The shares of row i's classes from `from` on; a class without a share counts as nothing, even
// where its loss is infinite.
template <class F>
INLINE void with_shares(const Shares& shares, int64_t i, int64_t from, int64_t to, const F& f) {
  const float* row = shares.every + i * shares.row_step + from * shares.class_step;
  const int64_t mine = shares.target ? shares.target[i] - from : -1;
  const float own = shares.target ? shares.own[shares.target[i] * shares.own_step] : 0;
  for (int64_t j = 0; j < to - from; j += WIDTH) {
    const int64_t count = to - from - j;
    Floats share = shares.class_step ? load_any(row + j, count, 0) : spread(row[0]);
    share += lanes() == spread((int32_t)(mine - j)) && mine >= 0 ? spread(own) : Floats{};
    f(j, count, share);
  }
}

INLINE float products(const Shares& shares, int64_t i, int64_t from, int64_t to, const float* x) {
  Floats total = {};
  with_shares(shares, i, from, to, [&](int64_t j, int64_t count, Floats share) {
    const Floats product = share * load_any(x + j, count, 0);
    total += share == 0.0f ? Floats{} : product;
  });
  return sum(total);
}

template <class T>
static void expected_value(const Layout& at, const T* z, const Shares& shares, const Instruction* program,
                           int64_t length, Ranking* ranks, float* losses, int64_t begin, int64_t end) {
  const int64_t step = rows_at_once(at.classes);
  double totals[CHUNK];
  for (int64_t first = begin; first < end; first += step) {
    const int64_t last = std::min(first + step, end);
    for (int64_t i = first; i < last; ++i) {
      ranks[i] = rank(z + at.row(i, at.input), at.classes);
      totals[i - first] = 0;
    }
    const auto fill = [&](int64_t i, int64_t from, int64_t to, float* a) {
      row_odds(z + at.row(i, at.input), ranks[i], from, to, a, nullptr);
    };
    const auto use = [&](int64_t i, int64_t from, int64_t to, const float* values) {
      if (!shares.ignores(i, at.classes)) totals[i - first] += products(shares, i, from, to, values);
    };
    by_chunks(at.classes, first, last, program, length, fill, use);
    for (int64_t i = first; i < last; ++i) losses[i] = (float)totals[i - first];
  }
}

// `buffer` has room for rows_at_once rows twice.
template <class T>
static void expected_gradient(const Layout& at, const T* z, const Shares& shares,
                              const Instruction* program, int64_t length, const Ranking* ranks,
                              const float* grad, int64_t grad_step, float scale, float* buffer,
                              T* out, int64_t begin, int64_t end) {
  const int64_t step = rows_at_once(at.classes);
  float *slopes = buffer, *weights = buffer + step * at.classes;
  for (int64_t first = begin; first < end; first += step) {
    const int64_t last = std::min(first + step, end);
    const auto fill = [&](int64_t i, int64_t from, int64_t to, float* a) {
      row_odds(z + at.row(i, at.input), ranks[i], from, to, a, weights + (i - first) * at.classes + from);
    };
    const auto use = [&](int64_t i, int64_t from, int64_t to, const float* values) {
      if (shares.ignores(i, at.classes)) return;
      const float g = grad[i * grad_step] * scale;
      float* row = slopes + (i - first) * at.classes + from;
      with_shares(shares, i, from, to, [&](int64_t j, int64_t count, Floats share) {
        const Floats product = share * load_any(values + j, count, 0) * g;
        store_any(row + j, share == 0.0f ? Floats{} : product, count);
      });
    };
    by_chunks(at.classes, first, last, program, length, fill, use);
    for (int64_t i = first; i < last; ++i) {
      T* result = out + at.row(i, at.output);
      if (shares.ignores(i, at.classes)) std::memset(result, 0, at.classes * sizeof(T));
      else
        row_all_gradient(ranks[i], slopes + (i - first) * at.classes,
                         weights + (i - first) * at.classes, result, at.classes);
    }
  }
}

#undef INLINE
#undef INLINE_TEMPLATE
