/* Products of blocks that lie in the caches, by sums in registers: what a library for large matrices has at its core.
 *
 * Operands are made of units of 32 bits: a number or, where the processor multiplies pairs of bfloat16 (AVX512-BF16),
 * two numbers that follow each other along the depth of the product. Sums are float32.
 */
#ifndef NATIVE_PRODUCTS_H
#define NATIVE_PRODUCTS_H

#include "shared.h"

#ifdef __AVX512BF16__
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

#define ROWS 6
#define BLOCK 64
#define LAST_ROWS (BLOCK % ROWS)

static inline vec multiply_add(vec sum, float unit, vec units, const int pairs) {
#if HAS_PAIRS
    if (pairs) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(unit), (__m512bh)units);
#endif
    (void)pairs;
    return sum + unit * units;
}

/* c += a b or c = a b, `rows` by `columns` vectors: a[i * a_row + k * a_depth], b and c with contiguous rows. */
static inline __attribute__((always_inline)) void in_registers(
    const int rows, const int columns, const int pairs, int64_t depth, const float *a, int64_t a_row, int64_t a_depth,
    const float *b, int64_t b_row, float *c, int64_t c_row, int add) {
    vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) sum[i][j] = add ? load(c + i * c_row + j * LANES) : (vec){0};
    for (int64_t k = 0; k < depth; k++) {
        vec y[COLUMNS];
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) y[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const float x = a[i * a_row + k * a_depth];
#pragma GCC unroll 8
            for (int j = 0; j < columns; j++) sum[i][j] = multiply_add(sum[i][j], x, y[j], pairs);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) store(c + i * c_row + j * LANES, sum[i][j]);
}

#define FOR_COLUMNS(rows, columns, pairs)                                                                         \
    case columns:                                                                                                 \
        in_registers(rows, columns, pairs, depth, a + i * a_row, a_row, a_depth, b + j, b_row, c + i * c_row + j, \
                     c_row, add);                                                                                 \
        break;
#if COLUMNS == 4
#define ANY_COLUMNS(rows, pairs) \
    FOR_COLUMNS(rows, 4, pairs) FOR_COLUMNS(rows, 3, pairs) FOR_COLUMNS(rows, 2, pairs) FOR_COLUMNS(rows, 1, pairs)
#else
#define ANY_COLUMNS(rows, pairs) FOR_COLUMNS(rows, 2, pairs) FOR_COLUMNS(rows, 1, pairs)
#endif

/* Which part of a product with a tile on the diagonal is needed, row by row: columns from the row on, or of the depth
 * what is from the row on, or up to it. What is not computed stays as it was, and
 * is not read by a product that says so too. */
enum { ALL, COLUMNS_FROM_ROW, DEPTH_FROM_ROW, DEPTH_TO_ROW };

/* The same for BLOCK rows by `width` columns, a multiple of LANES. all_depth: in units. */
static inline __attribute__((always_inline)) void multiply_units(
    const int pairs, int part, int64_t width, int64_t all_depth, const float *all_a, int64_t a_row, int64_t a_depth,
    const float *all_b, int64_t b_row, float *c, int64_t c_row, int add) {
    for (int64_t begin = 0; begin < width; begin += COLUMNS * LANES) {
        const int64_t end = begin + COLUMNS * LANES < width ? begin + COLUMNS * LANES : width;
        for (int64_t i = 0; i < BLOCK; i += ROWS) {
            const int64_t from = part == DEPTH_FROM_ROW ? i >> pairs : 0, row_end = (i + ROWS) >> pairs;
            const int64_t to = part == DEPTH_TO_ROW && row_end < all_depth ? row_end : all_depth, depth = to - from;
            const int64_t diagonal = part == COLUMNS_FROM_ROW ? i / LANES * LANES : 0;
            const int64_t j = begin > diagonal ? begin : diagonal;
            const float *a = all_a + from * a_depth, *b = all_b + from * b_row;
            if (j >= end) continue;
            if (i + ROWS <= BLOCK) switch ((end - j) / LANES) { ANY_COLUMNS(ROWS, pairs) }
            else switch ((end - j) / LANES) { ANY_COLUMNS(LAST_ROWS, pairs) }
        }
    }
}

static void multiply(int pairs, int part, int64_t width, int64_t depth, const float *a, int64_t a_row, int64_t a_depth,
                     const float *b, int64_t b_row, float *c, int64_t c_row, int add) {
    if (pairs)
        multiply_units(1, part, width, depth, a, a_row, a_depth, b, b_row, c, c_row, add);
    else
        multiply_units(0, part, width, depth, a, a_row, a_depth, b, b_row, c, c_row, add);
}

#endif
