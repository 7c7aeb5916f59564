/* Causal attention for training on a CPU, forward and backward.
 *
 * Compiled for the machine that it runs on (`model/native/__init__.py`). As in flash attention (Dao et al. 2022), tiles
 * of 64 keys by 64 queries stay in the caches, keys after the last query of a tile are left out, and the backward
 * computes the probabilities again from queries, keys and the saved logarithm of their sum. What differs from PyTorch's
 * kernel: a tile lies with the queries of a key side by side, so that softmax needs no sums across a vector, and all
 * products are one routine over registers (`multiply`) instead of calls of a library for large matrices.
 *
 * Scores, softmax and its gradient, and all sums, are float32. Products are of float32 too; of bfloat16, where that is
 * the dtype and the processor multiplies pairs of it. `multiply` (products.h) has operands of 32-bit units, which are a
 * number or such a pair.
 *
 * L positions, D channels, W channels padded to whole vectors, U units of such a row. A tile "KQ" has keys as rows and
 * queries as columns. Keys and queries beyond L are zeros: the former are masked as later ones are, of the latter
 * nothing is written.
 */
#include "products.h"

#define TURNED 16

/* Strides in elements; channels are contiguous. */
typedef struct {
    void *data;
    int64_t batch, head, row;
} Array;

typedef struct {
    int64_t batch, heads, kv_heads, length, channels;
    int32_t bfloat16, threads;
    float scale;
} Shape;

static inline int in_pairs(const Shape *s) { return HAS_PAIRS && s->bfloat16; }

/* Positions first.. of one head, `rows` of them, as float32, zeros around them: (rows_padded, W). */
static void read_rows(const Shape *s, const Array *x, int64_t b, int64_t h, int64_t first, int64_t rows_padded,
                      int64_t W, float *to) {
    int64_t left = s->length - first, rows = left < rows_padded ? left : rows_padded, D = s->channels;
    int64_t offset = b * x->batch + h * x->head + first * x->row;
    for (int64_t i = 0; i < rows; i++, offset += x->row) {
        float *row = to + i * W;
        if (s->bfloat16) {
            const uint16_t *from = (const uint16_t *)x->data + offset;
            for (int64_t d = 0; d < D; d++) row[d] = widened(from[d]);
        } else {
            memcpy(row, (const float *)x->data + offset, sizeof(float) * (size_t)D);
        }
        for (int64_t d = D; d < W; d++) row[d] = 0.0f;
    }
    if (rows < rows_padded) memset(to + rows * W, 0, sizeof(float) * (size_t)((rows_padded - rows) * W));
}

static void write_rows(const Shape *s, const Array *x, int64_t b, int64_t h, int64_t first, int64_t rows_padded,
                       int64_t W, float factor, const float *from) {
    int64_t left = s->length - first, rows = left < rows_padded ? left : rows_padded, D = s->channels;
    int64_t offset = b * x->batch + h * x->head + first * x->row;
    for (int64_t i = 0; i < rows; i++, offset += x->row) {
        const float *row = from + i * W;
        if (s->bfloat16) {
            uint16_t *to = (uint16_t *)x->data + offset;
            for (int64_t d = 0; d < D; d++) to[d] = rounded(row[d] * factor);
        } else {
            float *to = (float *)x->data + offset;
            for (int64_t d = 0; d < D; d++) to[d] = row[d] * factor;
        }
    }
}

/* The same rows as units, (rows_padded, U): numbers as they are, or pairs of neighbouring channels. */
static void read_units(const Shape *s, const Array *x, int64_t b, int64_t h, int64_t first, int64_t rows_padded,
                       int64_t W, float *to) {
    if (!in_pairs(s)) {
        read_rows(s, x, b, h, first, rows_padded, W, to);
        return;
    }
    int64_t left = s->length - first, rows = left < rows_padded ? left : rows_padded;
    const uint16_t *from = (const uint16_t *)x->data + b * x->batch + h * x->head + first * x->row;
    memset(to, 0, sizeof(uint16_t) * (size_t)(rows_padded * W));
    for (int64_t i = 0; i < rows; i++)
        memcpy((uint16_t *)to + i * W, from + i * x->row, sizeof(uint16_t) * (size_t)s->channels);
}

/* Of rows (n, U), what a product sums over positions by: the rows themselves, or pairs of them, (n / 2, W) in `to`. */
static const float *along_positions(const Shape *s, const float *rows, int64_t n, int64_t W, float *to) {
    if (!in_pairs(s)) return rows;
    const uint16_t *from = (const uint16_t *)rows;
    uint32_t *units = (uint32_t *)to;
    for (int64_t i = 0; i < n; i += 2)
        for (int64_t d = 0; d < W; d++)
            units[i / 2 * W + d] = (uint32_t)from[i * W + d] | (uint32_t)from[(i + 1) * W + d] << 16;
    return to;
}

/* (BLOCK, U) to (U, BLOCK), some channels at a time: the lines that are written stay in the cache. */
static void turn(const float *restrict from, int64_t U, float *restrict to) {
    for (int64_t begin = 0; begin < U; begin += TURNED)
        for (int64_t q = 0; q < BLOCK; q++)
            for (int64_t d = begin; d < begin + TURNED && d < U; d++) to[d * BLOCK + q] = from[q * U + d];
}

/* A tile as pairs of bfloat16: of neighbouring queries in `by_query` (BLOCK, BLOCK / 2), where it is not NULL; of
 * neighbouring keys in `by_key` (BLOCK / 2, BLOCK). */
static void narrow(const float *tile_KQ, float *by_query, float *by_key) {
#if HAS_PAIRS
    for (int64_t key = 0; key < BLOCK; key += 2)
        for (int64_t q = 0; q < BLOCK; q += 2 * LANES) {
            const float *at = tile_KQ + key * BLOCK + q;
            const __m512i even = (__m512i)_mm512_cvtne2ps_pbh((__m512)load(at + LANES), (__m512)load(at));
            const float *next = at + BLOCK;
            const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh((__m512)load(next + LANES), (__m512)load(next));
            if (by_query != NULL) {
                _mm512_store_si512(by_query + (key * BLOCK + q) / 2, even);
                _mm512_store_si512(by_query + ((key + 1) * BLOCK + q) / 2, odd);
            }
            for (int half = 0; half < 2; half++) {
                const __m256i low = half ? _mm512_extracti64x4_epi64(even, 1) : _mm512_castsi512_si256(even);
                const __m256i high = half ? _mm512_extracti64x4_epi64(odd, 1) : _mm512_castsi512_si256(odd);
                const __m512i shifted = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
                _mm512_store_si512(by_key + key / 2 * BLOCK + q + half * LANES,
                                   _mm512_or_si512(_mm512_cvtepu16_epi32(low), shifted));
            }
        }
#else
    (void)tile_KQ, (void)by_query, (void)by_key;
#endif
}

/* Of the tile on the diagonal: no weight for a key after the query. */
static void mask_later(float *tile_KQ) {
    for (int64_t key = 1; key < BLOCK; key++)
        for (int64_t query = 0; query < key; query++) tile_KQ[key * BLOCK + query] = -INFINITY;
}

/* Scores become weights by the greatest of their column so far, `most`; `sum` and `out` follow. factor: that of the
 * scores, times log2(e). */
static void softmax_on(float *tile_KQ, float factor, float *most, float *sum, float *out_QW, int64_t W) {
    float again[BLOCK] __attribute__((aligned(64)));
    for (int64_t v = 0; v < BLOCK; v += LANES) {
        vec before = load(most + v), now = before, added = {0};
        for (int64_t key = 0; key < BLOCK; key++) now = larger(load(tile_KQ + key * BLOCK + v), now);
        for (int64_t key = 0; key < BLOCK; key++) {
            vec p = power_of_2((load(tile_KQ + key * BLOCK + v) - now) * factor);
            store(tile_KQ + key * BLOCK + v, p);
            added += p;
        }
        vec less = power_of_2((before - now) * factor);
        store(again + v, less);
        store(sum + v, load(sum + v) * less + added);
        store(most + v, now);
    }
    for (int64_t q = 0; q < BLOCK; q++)
        for (int64_t d = 0; d < W; d += LANES) store(out_QW + q * W + d, load(out_QW + q * W + d) * again[q]);
}

/* k: units; v: `along_positions`. */
static void forward_head(const Shape *s, const Array *q, const Array *out, float *lse_L, int64_t b, int64_t h,
                         int64_t W, const float *k_LU, const float *v_LW, float *room) {
    const int pairs = in_pairs(s);
    const int64_t U = W >> pairs;
    const float factor = s->scale * (float)M_LOG2E;
    float *q_QU = take(&room, BLOCK * W), *q_UQ = take(&room, BLOCK * W), *out_QW = take(&room, BLOCK * W);
    float *tile_KQ = take(&room, BLOCK * BLOCK), *by_key = take(&room, BLOCK * BLOCK);
    float *most = take(&room, BLOCK), *sum = take(&room, BLOCK);
    const float *weights = pairs ? by_key : tile_KQ;
    for (int64_t first = 0; first < s->length; first += BLOCK) {
        read_units(s, q, b, h, first, BLOCK, W, q_QU);
        turn(q_QU, U, q_UQ);
        memset(out_QW, 0, sizeof(float) * (size_t)(BLOCK * W));
        for (int64_t i = 0; i < BLOCK; i++) most[i] = -INFINITY, sum[i] = 0.0f;
        for (int64_t key = 0; key <= first; key += BLOCK) {
            const int later = key == first; /* are there keys after queries */
            multiply(pairs, later ? COLUMNS_FROM_ROW : ALL, BLOCK, U, k_LU + key * U, U, 1, q_UQ, BLOCK, tile_KQ, BLOCK,
                     0);
            if (later) mask_later(tile_KQ);
            softmax_on(tile_KQ, factor, most, sum, out_QW, W);
            if (pairs) narrow(tile_KQ, NULL, by_key);
            multiply(pairs, later ? DEPTH_TO_ROW : ALL, W, BLOCK >> pairs, weights, 1, BLOCK,
                     v_LW + (key >> pairs) * W, W, out_QW, W, 1);
        }
        for (int64_t i = 0; i < BLOCK; i++)
            for (int64_t d = 0; d < W; d++) out_QW[i * W + d] /= sum[i];
        write_rows(s, out, b, h, first, BLOCK, W, 1.0f, out_QW);
        for (int64_t i = 0; i < BLOCK && first + i < s->length; i++)
            lse_L[first + i] = most[i] * factor + log2f(sum[i]);
    }
}

/* softmax(q k^T scale) v. lse (B, H, L): logarithm to base 2 of the sum of each query's weights. 0, or NO_MEMORY. */
int attention_forward(const Shape *s, const Array *q, const Array *k, const Array *v, const Array *out, float *lse) {
    const int64_t W = padded(s->channels, LANES), L = padded(s->length, BLOCK), group = s->heads / s->kv_heads;
    const int64_t floats = 3 * L * W + 3 * BLOCK * W + 2 * BLOCK * BLOCK + 2 * BLOCK;
    float *memory = reserve(floats, s->threads);
    if (memory == NULL) return NO_MEMORY;
#pragma omp parallel for schedule(dynamic, 1) num_threads(s->threads)
    for (int64_t item = 0; item < s->batch * s->kv_heads; item++) {
        const int64_t b = item / s->kv_heads, kv = item % s->kv_heads;
        float *room = own(memory, floats);
        float *k_LU = take(&room, L * W), *v_LU = take(&room, L * W), *spare = take(&room, L * W);
        read_units(s, k, b, kv, 0, L, W, k_LU);
        read_units(s, v, b, kv, 0, L, W, v_LU);
        const float *v_LW = along_positions(s, v_LU, L, W, spare);
        for (int64_t h = kv * group; h < (kv + 1) * group; h++)
            forward_head(s, q, out, lse + (b * s->heads + h) * s->length, b, h, W, k_LU, v_LW, room);
    }
    free(memory);
    return 0;
}

/* What the query heads of a key/value head share in the backward. */
typedef struct {
    const float *k_LU, *k_LW, *v_LU; /* units, and `along_positions` */
    float *grad_k_LW, *grad_v_LW;
} KeyValueHead;

/* With P the weights: dv = P^T do, dP = do v^T, dS = P (dP - sum(do out)), dq = dS k scale, dk = dS^T q scale. */
static void backward_head(const Shape *s, const Array *q, const Array *out, const Array *grad, const float *lse_L,
                          const Array *grad_q, int64_t b, int64_t h, int64_t W, const KeyValueHead *kv, float *room) {
    const int pairs = in_pairs(s);
    const int64_t U = W >> pairs;
    const float factor = s->scale * (float)M_LOG2E;
    float *q_QU = take(&room, BLOCK * W), *q_UQ = take(&room, BLOCK * W), *q_spare = take(&room, BLOCK * W);
    float *grad_QU = take(&room, BLOCK * W), *grad_UQ = take(&room, BLOCK * W), *grad_spare = take(&room, BLOCK * W);
    float *grad_q_QW = take(&room, BLOCK * W);
    float *p_KQ = take(&room, BLOCK * BLOCK), *ds_KQ = take(&room, BLOCK * BLOCK);
    float *p_by_query = take(&room, BLOCK * BLOCK), *ds_by_query = take(&room, BLOCK * BLOCK);
    float *ds_by_key = take(&room, BLOCK * BLOCK), *lse = take(&room, BLOCK), *share = take(&room, BLOCK);
    const float *p = pairs ? p_by_query : p_KQ, *ds = pairs ? ds_by_query : ds_KQ;
    const float *ds_turned = pairs ? ds_by_key : ds_KQ;
    const int64_t tile_row = BLOCK >> pairs;
    for (int64_t first = 0; first < s->length; first += BLOCK) {
        read_rows(s, out, b, h, first, BLOCK, W, q_UQ);
        read_rows(s, grad, b, h, first, BLOCK, W, grad_UQ);
        for (int64_t i = 0; i < BLOCK; i++) {
            vec total = {0};
            for (int64_t d = 0; d < W; d += LANES) total += load(q_UQ + i * W + d) * load(grad_UQ + i * W + d);
            share[i] = across(total);
            lse[i] = first + i < s->length ? lse_L[first + i] : 0.0f;
        }
        read_units(s, q, b, h, first, BLOCK, W, q_QU);
        read_units(s, grad, b, h, first, BLOCK, W, grad_QU);
        turn(q_QU, U, q_UQ);
        turn(grad_QU, U, grad_UQ);
        const float *q_QW = along_positions(s, q_QU, BLOCK, W, q_spare);
        const float *grad_QW = along_positions(s, grad_QU, BLOCK, W, grad_spare);
        memset(grad_q_QW, 0, sizeof(float) * (size_t)(BLOCK * W));
        for (int64_t key = 0; key <= first; key += BLOCK) {
            const int later = key == first, scores = later ? COLUMNS_FROM_ROW : ALL;
            const int over_queries = later ? DEPTH_FROM_ROW : ALL, over_keys = later ? DEPTH_TO_ROW : ALL;
            multiply(pairs, scores, BLOCK, U, kv->k_LU + key * U, U, 1, q_UQ, BLOCK, p_KQ, BLOCK, 0);
            multiply(pairs, scores, BLOCK, U, kv->v_LU + key * U, U, 1, grad_UQ, BLOCK, ds_KQ, BLOCK, 0);
            if (later) mask_later(p_KQ);
            for (int64_t i = 0; i < BLOCK * BLOCK; i += LANES) {
                vec weight = power_of_2(load(p_KQ + i) * factor - load(lse + i % BLOCK));
                store(p_KQ + i, weight);
                store(ds_KQ + i, weight * (load(ds_KQ + i) - load(share + i % BLOCK)));
            }
            if (pairs) narrow(p_KQ, p_by_query, ds_by_key); /* the last as room only */
            if (pairs) narrow(ds_KQ, ds_by_query, ds_by_key);
            multiply(pairs, over_queries, W, tile_row, p, tile_row, 1, grad_QW, W, kv->grad_v_LW + key * W, W, 1);
            multiply(pairs, over_queries, W, tile_row, ds, tile_row, 1, q_QW, W, kv->grad_k_LW + key * W, W, 1);
            multiply(pairs, over_keys, W, tile_row, ds_turned, 1, BLOCK, kv->k_LW + (key >> pairs) * W, W, grad_q_QW, W,
                     1);
        }
        write_rows(s, grad_q, b, h, first, BLOCK, W, s->scale, grad_q_QW);
    }
}

/* The gradients of q, k and v by that of the output; lse and out as the forward left them. */
int attention_backward(const Shape *s, const Array *q, const Array *k, const Array *v, const Array *out,
                       const float *lse, const Array *grad, const Array *grad_q, const Array *grad_k,
                       const Array *grad_v) {
    const int64_t W = padded(s->channels, LANES), L = padded(s->length, BLOCK), group = s->heads / s->kv_heads;
    const int64_t floats = 5 * L * W + 7 * BLOCK * W + 5 * BLOCK * BLOCK + 2 * BLOCK;
    float *memory = reserve(floats, s->threads);
    if (memory == NULL) return NO_MEMORY;
#pragma omp parallel for schedule(dynamic, 1) num_threads(s->threads)
    for (int64_t item = 0; item < s->batch * s->kv_heads; item++) {
        const int64_t b = item / s->kv_heads, head = item % s->kv_heads;
        float *room = own(memory, floats);
        float *k_LU = take(&room, L * W), *v_LU = take(&room, L * W), *spare = take(&room, L * W);
        float *grad_k_LW = take(&room, L * W), *grad_v_LW = take(&room, L * W);
        read_units(s, k, b, head, 0, L, W, k_LU);
        read_units(s, v, b, head, 0, L, W, v_LU);
        memset(grad_k_LW, 0, sizeof(float) * (size_t)(L * W));
        memset(grad_v_LW, 0, sizeof(float) * (size_t)(L * W));
        const KeyValueHead kv = {k_LU, along_positions(s, k_LU, L, W, spare), v_LU, grad_k_LW, grad_v_LW};
        for (int64_t h = head * group; h < (head + 1) * group; h++)
            backward_head(s, q, out, grad, lse + (b * s->heads + h) * s->length, grad_q, b, h, W, &kv, room);
        write_rows(s, grad_k, b, head, 0, L, W, s->scale, grad_k_LW);
        write_rows(s, grad_v, b, head, 0, L, W, 1.0f, grad_v_LW);
    }
    free(memory);
    return 0;
}
