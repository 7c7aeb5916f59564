/* What the parts of the NVML stand-in share: a GPU as configured, and its power over time. */
#ifndef NVML_SIM_H
#define NVML_SIM_H

#include <stddef.h>

enum { MAX_GPUS = 64, MAX_MIG = 7 };

/* Power goes linearly from from_w to to_w; before_j is the energy of the cycle up to start_s. */
typedef struct {
    double start_s, length_s, from_w, to_w, before_j;
} Segment;

/* One cycle of power, repeated for ever: every kind of trace becomes this, so that its integral is exact. */
typedef struct {
    Segment *segments;
    size_t count;
    double period_s, total_j;
} Trace;

/* From a time until a time (`12:15`), for ever (`12`), or never (the default). */
typedef struct {
    double from_s, until_s;
} Span;

typedef struct Device Device;
struct Device {
    char uuid[96], name[96], trace[16], path[512], shape[16], mig[1024];
    /* trace */
    double power, low, mid, high, period, duty, phase, seed, bursts, on, off, step, optimizer, every, dip;
    /* energy counter */
    double counter, counter_period, counter_offset, counter_start, counter_step;
    /* power register */
    double update, window, offset, power_step, average, usage_average, instant;
    /* both */
    double gain, limit, stamp_call;
    /* settings: W, MHz, bits of nvmlClocksEventReasons */
    double default_limit, clock, max_clock, reasons;
    /* faults */
    double flaky, latency, stale;
    double reset;
    Span lost, hang, nopower;

    Trace curve;
    unsigned long calls; /* measurements asked for, by this process */
    double opened_s;     /* when this process last initialised NVML */
    /* MIG: an instance has a parent and no sensor of its own */
    Device *parent, *instances;
    unsigned instance_count, multiprocessors, slices;
    unsigned long long memory_mb;
};

/* config.c: 0 and the GPUs, or -1 with a message on stderr. */
int sim_load(const char *path, Device *gpus, unsigned *count);

/* trace.c */
int trace_build(Device *gpu);                          /* -1 with a message when the trace makes no sense */
double trace_power_w(const Device *gpu, double t);     /* true power */
double trace_energy_j(const Device *gpu, double t);    /* its exact integral from 0 to t */

#endif
