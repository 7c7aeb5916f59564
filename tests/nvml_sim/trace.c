/* The true power of a simulated GPU, as a repeating row of straight segments, and its exact integral.
 *
 * truth.py does the same arithmetic in the same order: change both.
 */
#include "sim.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add(Trace *trace, double length_s, double from_w, double to_w) {
    if (!(length_s > 0)) return;
    trace->segments = realloc(trace->segments, (trace->count + 1) * sizeof(Segment));
    trace->segments[trace->count++] = (Segment){trace->period_s, length_s, from_w, to_w, trace->total_j};
    trace->period_s += length_s;
    trace->total_j += 0.5 * (from_w + to_w) * length_s;
}

/* splitmix64: five lines that every language can repeat bit for bit. In [0, 1). */
static double uniform(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* Rows "seconds,watts" from 0 on; the last row ends the cycle. Lines that are no numbers (a header) are passed over. */
static int from_file(Device *gpu) {
    FILE *file = fopen(gpu->path, "r");
    char line[256];
    double t, w, last_t = 0, last_w = 0;
    int rows = 0, hold = !strcmp(gpu->shape, "hold");
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%lf,%lf", &t, &w) != 2) continue;
        if (rows++) add(&gpu->curve, t - last_t, last_w, hold ? last_w : w);
        last_t = t, last_w = w;
    }
    fclose(file);
    return 0;
}

int trace_build(Device *gpu) {
    Trace *trace = &gpu->curve;
    const char *kind = gpu->trace;
    if (!strcmp(kind, "constant")) {
        add(trace, 1, gpu->power, gpu->power);
    } else if (!strcmp(kind, "square")) {
        add(trace, gpu->period * gpu->duty, gpu->high, gpu->high);
        add(trace, gpu->period * (1 - gpu->duty), gpu->low, gpu->low);
    } else if (!strcmp(kind, "ramp")) {
        add(trace, gpu->period, gpu->low, gpu->high);
    } else if (!strcmp(kind, "bursts")) {
        uint64_t state = (uint64_t)gpu->seed;
        for (int i = 0; i < (int)gpu->bursts; i++) {
            double off = gpu->off * (0.5 + uniform(&state)), on = gpu->on * (0.5 + uniform(&state));
            add(trace, off, gpu->low, gpu->low);
            add(trace, on, gpu->high, gpu->high);
        }
    } else if (!strcmp(kind, "steps")) {
        for (int i = 0; i < (int)gpu->every; i++) {
            add(trace, gpu->step * (1 - gpu->optimizer), gpu->high, gpu->high);
            add(trace, gpu->step * gpu->optimizer, gpu->mid, gpu->mid);
        }
        add(trace, gpu->dip, gpu->low, gpu->low);
    } else if (strcmp(kind, "file") || from_file(gpu)) {
        fprintf(stderr, "nvml_sim: %s: no trace %s %s\n", gpu->uuid, kind, gpu->path);
        return -1;
    }
    if (!trace->count) fprintf(stderr, "nvml_sim: %s: trace %s takes no time\n", gpu->uuid, kind);
    return trace->count ? 0 : -1;
}

/* The segment at time x of the repeated cycle, the cycles before it and the time inside the segment. */
static const Segment *locate(const Trace *trace, double x, double *cycles, double *inside_s) {
    *cycles = floor(x / trace->period_s);
    double rest = x - *cycles * trace->period_s;
    size_t low = 0, high = trace->count;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (trace->segments[middle].start_s <= rest) low = middle;
        else high = middle;
    }
    *inside_s = rest - trace->segments[low].start_s;
    return &trace->segments[low];
}

static double integral_j(const Trace *trace, double x) {
    double cycles, d;
    const Segment *s = locate(trace, x, &cycles, &d);
    return cycles * trace->total_j + s->before_j + s->from_w * d + 0.5 * (s->to_w - s->from_w) * d * d / s->length_s;
}

double trace_power_w(const Device *gpu, double t) {
    double cycles, d;
    const Segment *s = locate(&gpu->curve, t + gpu->phase, &cycles, &d);
    return s->from_w + (s->to_w - s->from_w) * d / s->length_s;
}

double trace_energy_j(const Device *gpu, double t) {
    return integral_j(&gpu->curve, t + gpu->phase) - integral_j(&gpu->curve, gpu->phase);
}
