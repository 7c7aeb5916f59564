/* What the routines share: vectors of the machine's width, 2^x, bfloat16, and the memory of a thread. */
#ifndef NATIVE_SHARED_H
#define NATIVE_SHARED_H

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define COLUMNS 4 /* vectors of a row that `multiply` keeps in registers: of 32 there, 24 for sums */
#elif defined(__AVX__)
#define LANES 8
#define COLUMNS 2 /* 12 of 16 */
#elif defined(__aarch64__)
#define LANES 4
#define COLUMNS 4
#else
#define LANES 4
#define COLUMNS 2
#endif

enum { NO_MEMORY = 1, BAD_INDEX = 2 }; /* what a routine returns where it is not 0 */

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec x) { *(vec *)to = x; }
static inline vec pick(ivec where, vec yes, vec no) { return (vec)(((ivec)yes & where) | ((ivec)no & ~where)); }
static inline vec larger(vec x, vec y) { return pick(x > y, x, y); }

/* The nearest whole number, of x from -200 on; of -infinity -200, of NaN NaN. */
static inline vec nearest_whole(vec x) {
#ifdef __AVX512F__
    return (vec)_mm512_roundscale_ps(_mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)x), 0); /* max: of NaN the second */
#else
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    return (pick(x < -200.0f, (vec){0} - 200.0f, x) + to_integer) - to_integer;
#endif
}

/* 2^(whole + rest), |rest| <= 1/2, whole <= 0 (Cephes' polynomial, 2e-7 relative); 0 below the normal numbers. */
static inline vec power_of_parts(vec whole, vec rest) {
    vec y = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
    y = y * rest + 9.618437357674640e-3f;
    y = y * rest + 5.550332471162809e-2f;
    y = y * rest + 2.402264791363012e-1f;
    y = y * rest + 6.931472028550421e-1f;
    y = y * rest + 1.0f;
    const ivec tiny = whole < -126.0f;
#ifdef __AVX512F__
    return pick(tiny, (vec){0}, (vec)_mm512_scalef_ps((__m512)y, (__m512)whole));
#else
    const ivec exponent = __builtin_convertvector(pick(tiny, (vec){0}, whole), ivec) + 127;
    return pick(tiny, (vec){0}, y * (vec)(exponent << 23));
#endif
}

/* 2^x for x <= 0; 0 of -infinity, NaN of NaN. */
static inline vec power_of_2(vec x) {
    const vec whole = nearest_whole(x);
    return power_of_parts(whole, x - whole);
}

/* e^x for x <= 0, as exact for large x as for small: what a multiple of ln 2 leaves of x is computed in two steps. */
static inline vec exponential(vec x) {
    const vec whole = nearest_whole(x * (float)M_LOG2E);
    return power_of_parts(whole, ((x - whole * 0.693359375f) + whole * 2.12194440e-4f) * (float)M_LOG2E);
}

static inline float across(vec x) {
    float total = 0.0f;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

static inline float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline uint16_t rounded(float x) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Memory for so many numbers for each thread, reserved before the threads begin (NULL where there is none): `own` is a
 * thread's, and `take` cuts it into arrays, all of whole lines of 64 numbers. */
static inline float *reserve(int64_t floats, int64_t threads) {
    return aligned_alloc(256, sizeof(float) * (size_t)(floats * threads));
}

static inline float *own(float *memory, int64_t floats) { return memory + floats * omp_get_thread_num(); }

static inline float *take(float **room, int64_t floats) {
    float *taken = *room;
    *room += floats;
    return taken;
}

#endif
