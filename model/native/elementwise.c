/* What stands between the matrix products of a training step, in one pass over memory each, float32 inside.
 *
 * Every routine takes contiguous arrays of float32 or bfloat16 a row (or a piece) at a time: `get` brings it into a
 * thread's own memory as float32 with zeros up to a whole vector, `put` takes it back. Results do not depend on the
 * number of threads. All return 0, NO_MEMORY or BAD_INDEX.
 */
#include "shared.h"

#define PIECE 1024 /* of arrays without rows: four kilobytes in float32 */

static inline void get(const void *from, int64_t at, int64_t n, int bfloat16, float *to) {
    if (bfloat16) {
        const uint16_t *x = (const uint16_t *)from + at;
        for (int64_t i = 0; i < n; i++) to[i] = widened(x[i]);
    } else {
        memcpy(to, (const float *)from + at, sizeof(float) * (size_t)n);
    }
    for (int64_t i = n; i < padded(n, LANES); i++) to[i] = 0.0f;
}

static inline void put(void *to, int64_t at, int64_t n, int bfloat16, const float *from) {
    if (bfloat16) {
        uint16_t *x = (uint16_t *)to + at;
        for (int64_t i = 0; i < n; i++) x[i] = rounded(from[i]);
    } else {
        memcpy((float *)to + at, from, sizeof(float) * (size_t)n);
    }
}

/* y = x r w with r = 1 / sqrt(mean(x^2) + eps) of each row, which is kept: x, y (N, E), w (E) float32, r (N). */
int rms_norm_forward(const void *x, const float *weight, void *y, float *inverse, int64_t N, int64_t E,
                     int64_t bfloat16, int64_t threads, float eps) {
    const int64_t W = padded(E, 64);
    float *memory = reserve(W, threads + 1), *w = memory + threads * W;
    if (memory == NULL) return NO_MEMORY;
    get(weight, 0, E, 0, w);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < N; i++) {
        float *row = own(memory, W);
        get(x, i * E, E, bfloat16, row);
        vec squares = {0};
        for (int64_t e = 0; e < E; e += LANES) squares += load(row + e) * load(row + e);
        const float r = inverse[i] = 1.0f / sqrtf(across(squares) / E + eps);
        for (int64_t e = 0; e < E; e += LANES) store(row + e, load(row + e) * r * load(w + e));
        put(y, i * E, E, bfloat16, row);
    }
    free(memory);
    return 0;
}

/* dx = r g w - x r^3 / E sum(g w x), and of dw = sum over rows of g x r the sums of `chunks` equal parts of the rows,
 * (chunks, E), so that the order of additions is the same whatever the threads. */
int rms_norm_backward(const void *grad, const void *x, const float *weight, const float *inverse, void *grad_x,
                      float *grad_weight, int64_t chunks, int64_t N, int64_t E, int64_t bfloat16, int64_t threads) {
    const int64_t W = padded(E, 64), rows = (N + chunks - 1) / chunks;
    float *memory = reserve(3 * W, threads + 1), *w = memory + threads * 3 * W;
    if (memory == NULL) return NO_MEMORY;
    get(weight, 0, E, 0, w);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float *room = own(memory, 3 * W);
        float *high = take(&room, W), *g = take(&room, W), *sum = take(&room, W);
        memset(sum, 0, sizeof(float) * (size_t)W);
        for (int64_t i = chunk * rows; i < N && i < (chunk + 1) * rows; i++) {
            const float r = inverse[i];
            get(x, i * E, E, bfloat16, high);
            get(grad, i * E, E, bfloat16, g);
            vec along = {0};
            for (int64_t e = 0; e < E; e += LANES) {
                vec product = load(g + e) * load(high + e);
                store(sum + e, load(sum + e) + product * r);
                along += product * load(w + e);
            }
            const float back = across(along) * r * r * r / E;
            for (int64_t e = 0; e < E; e += LANES)
                store(g + e, load(g + e) * load(w + e) * r - load(high + e) * back);
            put(grad_x, i * E, E, bfloat16, g);
        }
        put(grad_weight, chunk * E, E, 0, sum);
    }
    free(memory);
    return 0;
}

/* x / (1 + e^-x), and 1 / (1 + e^-x) in `sigmoid`, by an exponential that cannot overflow. */
static inline vec silu(vec x, vec *sigmoid) {
    const ivec positive = x > 0.0f;
    const vec small = exponential(pick(positive, -x, x)), below = small + 1.0f;
    *sigmoid = pick(positive, (vec){0} + 1.0f, small) / below;
    return pick(positive, x, x * small) / below;
}

/* out = silu(gate) up, n numbers. */
int swiglu_forward(const void *gate, const void *up, void *out, int64_t n, int64_t bfloat16, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < n; first += PIECE) {
        float g[PIECE] __attribute__((aligned(64))), u[PIECE] __attribute__((aligned(64)));
        const int64_t left = n - first, some = left < PIECE ? left : PIECE;
        get(gate, first, some, bfloat16, g);
        get(up, first, some, bfloat16, u);
        for (int64_t i = 0; i < some; i += LANES) {
            vec unused;
            store(g + i, silu(load(g + i), &unused) * load(u + i));
        }
        put(out, first, some, bfloat16, g);
    }
    return 0;
}

/* With s = sigmoid(gate): d up = d silu, d gate = d up (s + silu (1 - s)). */
int swiglu_backward(const void *grad, const void *gate, const void *up, void *grad_gate, void *grad_up, int64_t n,
                    int64_t bfloat16, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < n; first += PIECE) {
        float g[PIECE] __attribute__((aligned(64))), u[PIECE] __attribute__((aligned(64)));
        float d[PIECE] __attribute__((aligned(64)));
        const int64_t left = n - first, some = left < PIECE ? left : PIECE;
        get(gate, first, some, bfloat16, g);
        get(up, first, some, bfloat16, u);
        get(grad, first, some, bfloat16, d);
        for (int64_t i = 0; i < some; i += LANES) {
            vec s, y = silu(load(g + i), &s), by = load(d + i);
            store(g + i, by * load(u + i) * (s + y * (1.0f - s)));
            store(u + i, by * y);
        }
        put(grad_gate, first, some, bfloat16, g);
        put(grad_up, first, some, bfloat16, u);
    }
    return 0;
}

/* Channels d and d + D/2 of `heads` heads at each position turned by its angle, or back by `direction` -1. x, y
 * (positions, heads, D); the tables (angles, D/2) repeat over the positions. */
int rotate(const void *x, const float *cosines, const float *sines, void *y, int64_t positions, int64_t angles,
           int64_t heads, int64_t D, int64_t direction, int64_t bfloat16, int64_t threads) {
    const int64_t half = D / 2, W = padded(D, 64);
    float *memory = reserve(2 * W, threads);
    if (memory == NULL) return NO_MEMORY;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t position = 0; position < positions; position++) {
        float *room = own(memory, 2 * W);
        float *restrict row = take(&room, W), *restrict turned = take(&room, W);
        const float *c = cosines + position % angles * half, *s = sines + position % angles * half;
        for (int64_t head = 0; head < heads; head++) {
            const int64_t at = (position * heads + head) * D;
            get(x, at, D, bfloat16, row);
            for (int64_t d = 0; d < half; d++) {
                const float sine = s[d] * direction;
                turned[d] = row[d] * c[d] - row[d + half] * sine;
                turned[d + half] = row[d + half] * c[d] + row[d] * sine;
            }
            put(y, at, D, bfloat16, turned);
        }
    }
    free(memory);
    return 0;
}

/* loss = log(sum(exp(x))) - x[target] of each row of the logits (N, V), which then become its gradient if that is
 * wanted: softmax - one-hot. Of a target `ignored` both are 0. */
int cross_entropy(void *logits, const int64_t *targets, float *loss, int64_t N, int64_t V, int64_t ignored,
                  int64_t differentiate, int64_t bfloat16, int64_t threads) {
    const int64_t W = padded(V, 64);
    float *memory = reserve(W, threads);
    if (memory == NULL) return NO_MEMORY;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < N; i++) {
        const int64_t target = targets[i], valid = target >= 0 && target < V;
        float *row = own(memory, W);
        if (!valid && target != ignored) {
#pragma omp atomic write
            failed = BAD_INDEX;
            continue;
        }
        get(logits, i * V, V, bfloat16, row);
        for (int64_t v = V; v < padded(V, LANES); v++) row[v] = -INFINITY;
        vec most = (vec){0} - INFINITY;
        for (int64_t v = 0; v < V; v += LANES) most = larger(load(row + v), most);
        float top = most[0];
        for (int lane = 1; lane < LANES; lane++) top = most[lane] > top ? most[lane] : top;
        loss[i] = valid ? top - row[target] : 0.0f;
        vec sums = {0};
        for (int64_t v = 0; v < V; v += LANES) {
            vec p = exponential(load(row + v) - top);
            store(row + v, p);
            sums += p;
        }
        const float sum = across(sums);
        if (valid) loss[i] += logf(sum);
        if (!differentiate) continue;
        const float factor = valid ? 1.0f / sum : 0.0f;
        for (int64_t v = 0; v < V; v += LANES) store(row + v, load(row + v) * factor);
        if (valid) row[target] -= 1.0f;
        put(logits, i * V, V, bfloat16, row);
    }
    free(memory);
    return failed;
}
