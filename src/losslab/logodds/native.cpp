// The CPU kernel: log-odds and their gradient in one pass each, on memory that Python hands over.
//
// It knows nothing of torch: Python (native.py) checks shapes, dtypes and devices and passes
// addresses, so that one build, against Python's stable ABI, serves every version of torch. Threads
// are those of the OpenMP runtime that torch has loaded, looked up by name, so there is one pool.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif
#if defined(__linux__) || defined(__APPLE__)
#include <dlfcn.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Where the numbers lie, in elements: the row i = (i / inner, i % inner) of (outer, classes, inner).
struct Strides {
  int64_t outer, classes, inner;
};
struct Layout {
  int64_t outer, classes, inner;
  Strides input, output;
  int64_t rows() const { return outer * inner; }
  int64_t row(int64_t i, const Strides& s) const {
    return inner == 1 ? i * s.outer : i / inner * s.outer + i % inner * s.inner;
  }
};

constexpr int64_t BLOCK = 2048;  // classes: 8 KB of float32, in the first-level cache
constexpr int64_t AHEAD = 4096;  // bytes
constexpr int64_t FEW = 24;      // up to so many classes, rows are worked on side by side

// A step of an elementwise program: registers from 0 on, or -1, -2, -3 for its own constants.
enum Code : int32_t {
  NEG, ADD, SUB, MUL, GATE, DIV, LE, LT, GE, GT, WHERE, MIN, MAX, SIGMOID, SOFTPLUS, LOGSIGMOID, EXP,
  LOG1P, EXPM1, POW, SIN, COS, ISINF, CODES
};
static const char* const CODE_NAMES[] = {
    "neg", "add", "sub", "mul", "gate", "div", "le", "lt", "ge", "gt", "where", "min", "max", "sigmoid",
    "softplus", "logsigmoid", "exp", "log1p", "expm1", "pow", "sin", "cos", "isinf"};
static_assert(sizeof CODE_NAMES / sizeof *CODE_NAMES == CODES);

struct Instruction {
  int32_t code, result, operands[3];
  float constants[3];
};
constexpr int64_t REGISTERS = 32;
constexpr int64_t CHUNK = 256;

// What the log-odds of every class of a row need; native.py keeps room for it.
struct Ranking {
  int64_t top;  // the top class, and
  float own;    // its log-odds
  float best, shift, total, rest;
};
static_assert(sizeof(Ranking) == 32);

// How much of psi of each class is in a row's loss: `every`, and `own` of the target's class besides.
// A step of 0 is one number for all rows, or for all classes. A target that is none is ignored.
struct Shares {
  const float* every;
  int64_t row_step, class_step;
  const int64_t* target;
  const float* own;
  int64_t own_step;
  bool ignores(int64_t i, int64_t classes) const {
    return target && (uint64_t)target[i] >= (uint64_t)classes;
  }
};

static inline float to_float(float x) { return x; }

static inline float to_float(BFloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

static inline float to_float(Float16 x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                          : exponent     ? std::ldexp((float)(mantissa + 1024), exponent - 25)
                                         : std::ldexp((float)mantissa, -24);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

template <class T>
static inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline BFloat16 from_float<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline Float16 from_float<Float16>(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (x != x) return {(uint16_t)(sign | 0x7e00)};
  if (magnitude >= 65520) return {(uint16_t)(sign | 0x7c00)};
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent = magnitude > 0 ? std::max(exponent, -13) : -13;  // of the last place, plus 11
  const int64_t units = (int64_t)std::nearbyint(std::ldexp(magnitude, 11 - exponent));
  return {(uint16_t)(sign | (units + ((int64_t)(exponent + 13) << 10)))};
}

// The same loops for several instruction sets; the best that the processor has is taken at run time.
namespace baseline {
#define WIDTH 4
#include "native_kernel.h"
#undef WIDTH
}  // namespace baseline

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DISPATCH_X86 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define WIDTH 8
#include "native_kernel.h"
#undef WIDTH
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
namespace avx512 {
#define WIDTH 16
#include "native_kernel.h"
#undef WIDTH
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

enum Level { BASELINE, AVX2, AVX512 };
static const char* const LEVEL_NAMES[] = {"baseline", "avx2", "avx512"};

static Level best_level() {
#ifdef DISPATCH_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return BASELINE;
}

static Level level = BASELINE;  // set when the module is loaded, and by tests

#ifdef DISPATCH_X86
#define CALL(function, ...)                             \
  (level == AVX512 ? avx512::function(__VA_ARGS__)      \
   : level == AVX2 ? avx2::function(__VA_ARGS__)        \
                   : baseline::function(__VA_ARGS__))
#else
#define CALL(function, ...) baseline::function(__VA_ARGS__)
#endif

// ---- threads -------------------------------------------------------------------------------

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);

static GompParallel find_openmp() {
#if defined(__linux__) || defined(__APPLE__)
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

constexpr int64_t GRAIN = 1 << 15;  // elements a thread should have, as in torch

template <class Work>
struct Team {
  const Work* work;
  int64_t rows, parts;
  std::atomic<int64_t> next;

  void take() {
    for (int64_t part; (part = next.fetch_add(1)) < parts;)
      (*work)(rows * part / parts, rows * (part + 1) / parts);
  }
  static void run(void* team) { static_cast<Team*>(team)->take(); }
};

// work(begin, end) over all rows, on at most `threads` threads.
template <class Work>
static void over_rows(const Layout& at, int64_t threads, const Work& work) {
  const int64_t rows = at.rows();
  const int64_t useful = std::min(rows, rows * at.classes / GRAIN);
  threads = std::min(threads, useful);
  if (threads < 2) {
    if (rows) work(0, rows);
    return;
  }
  // a few parts a thread: one that is held up by another process does not hold up the rest
  Team<Work> team{&work, rows, std::min(rows, 4 * threads), {0}};
  static const GompParallel openmp = find_openmp();
  if (openmp) {
    openmp(&Team<Work>::run, &team, (unsigned)threads, 0);
    return;
  }
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(&Team<Work>::run, &team);
  team.take();
  for (auto& other : others) other.join();
}

// Fresh memory comes in pages of 4 KB, each a fault; large ones save most of a large gradient's time.
static void expect_large_pages(void* address, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = ((uintptr_t)address + page - 1) & ~(page - 1);
  const uintptr_t end = ((uintptr_t)address + bytes) & ~(page - 1);
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

// ---- the functions that Python calls: addresses and sizes as integers ----------------------

struct Arguments {
  PyObject* const* values;
  Py_ssize_t used = 0;
  int64_t integer() { return PyLong_AsLongLong(values[used++]); }
  template <class T>
  T* address() {
    return static_cast<T*>(PyLong_AsVoidPtr(values[used++]));
  }
  double number() { return PyFloat_AsDouble(values[used++]); }
  Shares shares() {
    Shares s{};
    s.every = address<float>(), s.row_step = integer(), s.class_step = integer();
    s.target = address<int64_t>();
    s.own = address<float>(), s.own_step = integer();
    return s;
  }
  Strides strides() {
    Strides s;
    s.outer = integer(), s.classes = integer(), s.inner = integer();
    return s;
  }
  Layout layout() {  // sizes, then the strides of the input
    Layout at{};
    at.outer = integer(), at.classes = integer(), at.inner = integer();
    at.input = strides();
    return at;
  }
  Layout matrix() {  // rows, classes, row stride; the output is contiguous
    Layout at{};
    at.outer = integer(), at.classes = integer(), at.inner = 1;
    at.input = {integer(), 1, 0};
    at.output = {at.classes, 1, 0};
    return at;
  }
};

static bool expect(Py_ssize_t came, Py_ssize_t wanted) {
  if (came == wanted) return true;
  PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, came);
  return false;
}

static bool in_range(const int64_t* target, int64_t rows, int64_t classes) {
  for (int64_t i = 0; i < rows; ++i)
    if (target[i] < 0 || target[i] >= classes) return false;
  return true;
}

// f(T*) for the element type with this code; 0 float, 1 bfloat16, 2 half.
template <class F>
static void with_type(int64_t code, void* z, const F& f) {
  if (code == 0) f(static_cast<float*>(z));
  else if (code == 1) f(static_cast<BFloat16*>(z));
  else f(static_cast<Float16*>(z));
}

static PyObject* refuse_targets() {
  PyErr_SetString(PyExc_IndexError, "a target is out of bounds");
  return nullptr;
}

// scan(target, rows, classes, ignore_index): how many are ignored, -1 if another is out of range
static PyObject* scan(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (!expect(count, 4)) return nullptr;
  Arguments arguments{values};
  const int64_t* target = arguments.address<int64_t>();
  const int64_t rows = arguments.integer(), classes = arguments.integer();
  const int64_t ignore = arguments.integer();
  if (PyErr_Occurred()) return nullptr;
  int64_t ignored = 0;
  bool bad = false;
  for (int64_t i = 0; i < rows; ++i) {
    const bool skip = target[i] == ignore;
    ignored += skip;
    bad |= !skip & ((uint64_t)target[i] >= (uint64_t)classes);
  }
  return PyLong_FromLongLong(bad ? -1 : ignored);
}

// statistics(type, outer, classes, inner, input strides, threads, z, target, a, shift, total)
static PyObject* statistics(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (!expect(count, 13)) return nullptr;
  Arguments arguments{values};
  const int64_t type = arguments.integer();
  Layout at = arguments.layout();
  const int64_t threads = arguments.integer();
  void* z = arguments.address<void>();
  const int64_t* target = arguments.address<int64_t>();
  float *log_odds = arguments.address<float>(), *shift = arguments.address<float>(),
        *total = arguments.address<float>();
  if (PyErr_Occurred()) return nullptr;
  if (!in_range(target, at.rows(), at.classes)) return refuse_targets();
  const auto work = [&](auto* typed) {
    over_rows(at, threads, [&](int64_t begin, int64_t end) {
      if (at.input.classes == 1 && at.classes <= FEW)
        CALL(few_statistics, at, typed, target, log_odds, shift, total, begin, end);
      else if (at.input.classes == 1)
        CALL(row_statistics, at, typed, target, log_odds, shift, total, begin, end);
      else
        CALL(column_statistics, at, typed, target, log_odds, shift, total, begin, end);
    });
  };
  Py_BEGIN_ALLOW_THREADS with_type(type, z, work);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// gradient(type, outer, classes, inner, input strides, output strides, threads, z, target, shift,
//          total, upstream, out, fresh)
static PyObject* gradient(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (!expect(count, 18)) return nullptr;
  Arguments arguments{values};
  const int64_t type = arguments.integer();
  Layout at = arguments.layout();
  at.output = arguments.strides();
  const int64_t threads = arguments.integer();
  void* z = arguments.address<void>();
  const int64_t* target = arguments.address<int64_t>();
  const float *shift = arguments.address<float>(), *total = arguments.address<float>(),
              *upstream = arguments.address<float>();
  void* out = arguments.address<void>();
  const bool fresh = arguments.integer();
  if (PyErr_Occurred()) return nullptr;
  if (!in_range(target, at.rows(), at.classes)) return refuse_targets();
  const auto work = [&](auto* typed) {
    auto* result = static_cast<decltype(typed)>(out);
    if (fresh) expect_large_pages(out, at.rows() * at.classes * (int64_t)sizeof(*typed));
    over_rows(at, threads, [&](int64_t begin, int64_t end) {
      if (at.input.classes == 1 && at.classes <= FEW)
        CALL(few_gradient, at, typed, target, shift, total, upstream, result, begin, end);
      else if (at.input.classes == 1)
        CALL(row_gradient, at, typed, target, shift, total, upstream, result, begin, end);
      else
        CALL(column_gradient, at, typed, target, shift, total, upstream, result, begin, end);
    });
  };
  Py_BEGIN_ALLOW_THREADS with_type(type, z, work);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// all_statistics(type, rows, classes, row stride, threads, z, rankings, a)
static PyObject* all_statistics(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (!expect(count, 8)) return nullptr;
  Arguments arguments{values};
  const int64_t type = arguments.integer();
  const Layout at = arguments.matrix();
  const int64_t threads = arguments.integer();
  void* z = arguments.address<void>();
  Ranking* ranks = arguments.address<Ranking>();
  float* log_odds = arguments.address<float>();
  if (PyErr_Occurred()) return nullptr;
  const auto work = [&](auto* typed) {
    expect_large_pages(log_odds, at.rows() * at.classes * (int64_t)sizeof(float));
    over_rows(at, threads, [&](int64_t begin, int64_t end) {
      CALL(all_statistics, at, typed, ranks, log_odds, begin, end);
    });
  };
  Py_BEGIN_ALLOW_THREADS with_type(type, z, work);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// all_gradient(type, rows, classes, row stride, threads, z, rankings, upstream, out)
static PyObject* all_gradient(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (!expect(count, 9)) return nullptr;
  Arguments arguments{values};
  const int64_t type = arguments.integer();
  const Layout at = arguments.matrix();
  const int64_t threads = arguments.integer();
  void* z = arguments.address<void>();
  const Ranking* ranks = arguments.address<Ranking>();
  const float* upstream = arguments.address<float>();
  void* out = arguments.address<void>();
  if (PyErr_Occurred()) return nullptr;
  const auto work = [&](auto* typed) {
    auto* result = static_cast<decltype(typed)>(out);
    expect_large_pages(out, at.rows() * at.classes * (int64_t)sizeof(*typed));
    over_rows(at, threads, [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(2 * at.classes);
      CALL(all_gradient, at, typed, ranks, upstream, buffer.data(), result, begin, end);
    });
  };
  Py_BEGIN_ALLOW_THREADS with_type(type, z, work);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static bool read_program(PyObject* given, std::vector<Instruction>& program) {
  char* bytes;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(given, &bytes, &size) < 0) return false;
  program.resize(size / sizeof(Instruction));
  std::memcpy(program.data(), bytes, program.size() * sizeof(Instruction));
  bool sound = !program.empty() && size == (Py_ssize_t)(program.size() * sizeof(Instruction));
  for (const Instruction& step : program) {
    sound = sound && step.code >= 0 && step.code < CODES && step.result > 0 && step.result < REGISTERS;
    for (int32_t operand : step.operands) sound = sound && operand >= -3 && operand < REGISTERS;
  }
  if (!sound) PyErr_SetString(PyExc_ValueError, "not a program");
  return sound;
}

// evaluate(program as bytes, a, count, grad or 0, grad step, scale, sum, threads, out)
static PyObject* evaluate(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (!expect(count, 9)) return nullptr;
  std::vector<Instruction> program;
  if (!read_program(values[0], program)) return nullptr;
  const int64_t length = program.size();
  Arguments arguments{values, 1};
  const float* a = arguments.address<float>();
  const int64_t n = arguments.integer();
  const float* grad = arguments.address<float>();
  const int64_t grad_step = arguments.integer();
  const double scale = arguments.number();
  const bool sum_up = arguments.integer();
  const int64_t threads = arguments.integer();
  float* out = arguments.address<float>();
  if (PyErr_Occurred()) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  if (sum_up) {
    const double total = CALL(evaluate, program.data(), length, a, grad, 0, 1, nullptr, 0, n);
    out[0] = (float)(total * scale);
  } else {
    Layout chunks{};
    chunks.outer = (n + CHUNK - 1) / CHUNK, chunks.inner = 1, chunks.classes = CHUNK;
    over_rows(chunks, threads, [&](int64_t begin, int64_t end) {
      CALL(evaluate, program.data(), length, a, grad, grad_step, (float)scale, out, begin * CHUNK,
           std::min(end * CHUNK, n));
    });
  }
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// expected_value(program, type, rows, classes, row stride, threads, z, share, its row step, its class
//                step, target or 0, own share, its step, rankings, losses)
static PyObject* expected_value(PyObject*, PyObject* const* values, Py_ssize_t count) {
  std::vector<Instruction> program;
  if (!expect(count, 15) || !read_program(values[0], program)) return nullptr;
  Arguments arguments{values, 1};
  const int64_t type = arguments.integer();
  const Layout at = arguments.matrix();
  const int64_t threads = arguments.integer();
  void* z = arguments.address<void>();
  const Shares shares = arguments.shares();
  Ranking* ranks = arguments.address<Ranking>();
  float* losses = arguments.address<float>();
  if (PyErr_Occurred()) return nullptr;
  const auto work = [&](auto* typed) {
    over_rows(at, threads, [&](int64_t begin, int64_t end) {
      CALL(expected_value, at, typed, shares, program.data(), program.size(), ranks, losses, begin, end);
    });
  };
  Py_BEGIN_ALLOW_THREADS with_type(type, z, work);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// expected_gradient(program of the slope, ..., rankings as before, grad, its step, scale, out)
static PyObject* expected_gradient(PyObject*, PyObject* const* values, Py_ssize_t count) {
  std::vector<Instruction> program;
  if (!expect(count, 18) || !read_program(values[0], program)) return nullptr;
  Arguments arguments{values, 1};
  const int64_t type = arguments.integer();
  const Layout at = arguments.matrix();
  const int64_t threads = arguments.integer();
  void* z = arguments.address<void>();
  const Shares shares = arguments.shares();
  const Ranking* ranks = arguments.address<Ranking>();
  const float* grad = arguments.address<float>();
  const int64_t grad_step = arguments.integer();
  const float scale = (float)arguments.number();
  void* out = arguments.address<void>();
  if (PyErr_Occurred()) return nullptr;
  const auto work = [&](auto* typed) {
    auto* result = static_cast<decltype(typed)>(out);
    expect_large_pages(out, at.rows() * at.classes * (int64_t)sizeof(*typed));
    over_rows(at, threads, [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(2 * std::max(at.classes, CHUNK));
      CALL(expected_gradient, at, typed, shares, program.data(), program.size(), ranks, grad, grad_step,
           scale, buffer.data(), result, begin, end);
    });
  };
  Py_BEGIN_ALLOW_THREADS with_type(type, z, work);
  Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// codes() -> the names of the instructions, in the order of their numbers
static PyObject* codes(PyObject*, PyObject*) {
  PyObject* names = PyTuple_New(CODES);
  for (int i = 0; names && i < CODES; ++i) {
    PyObject* name = PyUnicode_FromString(CODE_NAMES[i]);
    if (!name || PyTuple_SetItem(names, i, name) < 0) {
      Py_DECREF(names);
      return nullptr;
    }
  }
  return names;
}

// level() -> the instruction set in use; level(name) takes another that the processor has
static PyObject* level_(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count == 1) {
    const int best = best_level();
    for (int i = 0; i <= best; ++i) {
      PyObject* name = PyUnicode_FromString(LEVEL_NAMES[i]);
      if (!name) return nullptr;
      if (PyUnicode_Compare(name, values[0]) == 0) level = (Level)i;
      Py_DECREF(name);
    }
    if (PyErr_Occurred()) return nullptr;
  }
  return PyUnicode_FromString(LEVEL_NAMES[level]);
}

static PyObject* threads_(PyObject*, PyObject*) {
  return PyUnicode_FromString(find_openmp() ? "openmp" : "std::thread");
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL
static PyMethodDef methods[] = {
    {"scan", FAST(scan), nullptr},
    {"statistics", FAST(statistics), nullptr},
    {"gradient", FAST(gradient), nullptr},
    {"all_statistics", FAST(all_statistics), nullptr},
    {"all_gradient", FAST(all_gradient), nullptr},
    {"evaluate", FAST(evaluate), nullptr},
    {"expected_value", FAST(expected_value), nullptr},
    {"expected_gradient", FAST(expected_gradient), nullptr},
    {"codes", codes, METH_NOARGS, nullptr},
    {"level", FAST(level_), nullptr},
    {"threads", threads_, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods,
                             nullptr,              nullptr,   nullptr, nullptr};

PyMODINIT_FUNC PyInit__native() {
  level = best_level();
  return PyModule_Create(&module);
}
