/* A stand-in for libnvidia-ml.so.1: GPUs whose power over time is known exactly, seen through sensors like the real ones.
 *
 * NVML_SIM names the configuration, read at nvmlInit (README.md in this folder lists the keys). Time is the number in the
 * file that NVML_SIM_CLOCK names, which tests turn by hand; else it is the unix time less NVML_SIM_EPOCH, which makes one
 * truth for all processes, also for those started later.
 *
 * What a sensor shows is older than the call: the counter stands still between its updates, and the power register is the
 * mean of a short window before its last update. That is where meters go wrong, so it is what this library models.
 */
#include "sim.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, TIMED_OUT = 10, LOST = 15,
    NO_GPU = 28, UNKNOWN = 999
};
enum { FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

typedef struct {
    uint32_t field, scope;
    int64_t timestamp_us, latency_us;
    unsigned type;
    int status;
    union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;

typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mb;
} Attributes;

typedef struct {
    char legacy_id[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

static Device gpus[MAX_GPUS];
static unsigned count;
static int ready;

/* --- time ------------------------------------------------------------------------------------------------------- */

static double epoch_s(void) {
    const char *epoch = getenv("NVML_SIM_EPOCH");
    return epoch ? atof(epoch) : 0;
}

static double now_s(void) {
    const char *path = getenv("NVML_SIM_CLOCK");
    if (path) {
        double seconds = 0;
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%lf", &seconds) != 1) seconds = 0;
        if (file) fclose(file);
        return seconds;
    }
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    /* whole seconds first: a double holds the unix time only to 0.2 us */
    double epoch = epoch_s(), whole = floor(epoch);
    return ((double)t.tv_sec - whole) + (t.tv_nsec * 1e-9 - (epoch - whole));
}

static void sleep_s(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&t, NULL);
}

static int in(const Span *span, double t) { return t >= span->from_s && t < span->until_s; }

/* --- the sensors ------------------------------------------------------------------------------------------------- */

/* The last update at or before t of something that is updated each period from an offset on. */
static double updated_s(double t, double period, double offset) {
    if (!(period > 0)) return t;
    return offset + floor((t - offset) / period + 1e-9) * period; /* 0.3 / 0.1 is less than 3 */
}

/* After a reload of the driver the counter starts from zero. */
static unsigned long long counter_mj(const Device *g, double t, double *at_s) {
    double since_s = g->reset;
    *at_s = updated_s(t, g->counter_period, g->counter_offset);
    double j = g->counter_start + g->gain * trace_energy_j(g, fmax(*at_s, 0));
    if (t >= since_s) {
        *at_s = fmax(*at_s, since_s);
        j = g->gain * (trace_energy_j(g, *at_s) - trace_energy_j(g, since_s));
    }
    return (unsigned long long)(floor(j / g->counter_step + 1e-6) * (g->counter_step * 1e3) + 0.5);
}

/* The mean over `window` before the last update. There is no power before time 0: windows are cut there. */
static unsigned power_mw(const Device *g, double t, double window, double *at_s) {
    *at_s = updated_s(t, g->update, g->offset);
    double from_s = fmax(*at_s - window, 0), w;
    if (*at_s - from_s > 1e-9) w = (trace_energy_j(g, *at_s) - trace_energy_j(g, from_s)) / (*at_s - from_s);
    else w = trace_power_w(g, fmax(*at_s, 0));
    return (unsigned)(floor(g->gain * w / g->power_step + 0.5) * (g->power_step * 1e3) + 0.5);
}

static int known(const Device *g) {
    if (g >= gpus && g < gpus + count) return 1;
    for (unsigned i = 0; i < count; i++)
        if (g >= gpus[i].instances && g < gpus[i].instances + gpus[i].instance_count) return 1;
    return 0;
}

/* What every question of a GPU's state goes through: the faults. MIG instances have no sensors. */
static int check(Device *g) {
    if (!ready) return UNINITIALIZED;
    if (!g || !known(g)) return INVALID;
    if (g->parent) return NOT_SUPPORTED;
    g->calls++;
    if (g->latency > 0) sleep_s(g->latency);
    while (in(&g->hang, now_s())) sleep_s(0.01);
    double t = now_s();
    if (in(&g->lost, t)) return LOST;
    if (g->stale && t >= g->reset && g->opened_s < g->reset) return UNINITIALIZED;
    return g->flaky >= 1 && g->calls % (unsigned long)g->flaky == 0 ? TIMED_OUT : OK;
}

static int power_status(const Device *g) { return in(&g->nopower, now_s()) ? NOT_SUPPORTED : OK; }

static int copy(char *to, unsigned size, const char *from) {
    if (!ready) return UNINITIALIZED;
    return snprintf(to, size, "%s", from) < (int)size ? OK : SMALL;
}

/* A constant answer of a GPU that can be asked. */
static int answer(Device *g, unsigned *to, unsigned value) {
    int status = check(g);
    if (!status) *to = value;
    return status;
}

/* --- library ----------------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!ready && sim_load(getenv("NVML_SIM"), gpus, &count)) return UNKNOWN;
    for (unsigned i = 0; i < count; i++) gpus[i].opened_s = now_s();
    ready++; /* counted, as in the real library */
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    if (!ready) return UNINITIALIZED;
    ready--;
    return OK;
}
int nvmlSystemGetDriverVersion(char *version, unsigned size) { return copy(version, size, "570.0-sim"); }
int nvmlSystemGetNVMLVersion(char *version, unsigned size) { return copy(version, size, "12.570.0-sim"); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12080; return OK; }
const char *nvmlErrorString(int code) {
    switch (code) {
    case OK: return "The operation was successful";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case SMALL: return "Insufficient Size";
    case TIMED_OUT: return "Timeout";
    case LOST: return "GPU is lost";
    case NO_GPU: return "GPU not found";
    default: return "Unknown Error";
    }
}

/* --- which device ------------------------------------------------------------------------------------------------ */

int nvmlDeviceGetCount_v2(unsigned *n) {
    *n = count;
    return ready ? OK : UNINITIALIZED;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    if (!ready) return UNINITIALIZED;
    if (index >= count) return INVALID;
    *device = &gpus[index];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    if (!ready) return UNINITIALIZED;
    for (unsigned i = 0; i < count; i++) {
        if (!strcmp(uuid, gpus[i].uuid)) { *device = &gpus[i]; return OK; }
        for (unsigned m = 0; m < gpus[i].instance_count; m++)
            if (!strcmp(uuid, gpus[i].instances[m].uuid)) { *device = &gpus[i].instances[m]; return OK; }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(Device *g, unsigned *index) {
    *index = (unsigned)((g->parent ? g->parent : g) - gpus);
    return ready ? OK : UNINITIALIZED;
}
int nvmlDeviceGetMinorNumber(Device *g, unsigned *minor) { return nvmlDeviceGetIndex(g, minor); }
int nvmlDeviceGetUUID(Device *g, char *uuid, unsigned size) { return copy(uuid, size, g->uuid); }
int nvmlDeviceGetName(Device *g, char *name, unsigned size) { return copy(name, size, g->name); }
int nvmlDeviceGetPciInfo_v3(Device *g, PciInfo *pci) {
    unsigned index = 0;
    int status = nvmlDeviceGetIndex(g, &index);
    memset(pci, 0, sizeof *pci);
    pci->bus = index + 1;
    pci->pci_device_id = 0x20B210DE;
    snprintf(pci->legacy_id, sizeof pci->legacy_id, "0000:%02X:00.0", index + 1);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", index + 1);
    return status;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, Device **device) {
    PciInfo pci;
    for (unsigned i = 0; i < count; i++)
        if (!nvmlDeviceGetPciInfo_v3(&gpus[i], &pci) && (!strcmp(id, pci.bus_id) || !strcmp(id, pci.legacy_id)))
            return nvmlDeviceGetHandleByIndex_v2(i, device);
    return NOT_FOUND;
}

/* --- MIG --------------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetMigMode(Device *g, unsigned *current, unsigned *pending) {
    if (g->parent) return INVALID;
    *current = *pending = g->instance_count > 0;
    return ready ? OK : UNINITIALIZED;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *g, unsigned *n) {
    *n = g->instance_count ? MAX_MIG : 0;
    return ready ? OK : UNINITIALIZED;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device *g, unsigned index, Device **instance) {
    if (index >= g->instance_count) return NOT_FOUND;
    *instance = &g->instances[index];
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *g, Device **parent) {
    if (!g->parent) return INVALID;
    *parent = g->parent;
    return OK;
}
int nvmlDeviceIsMigDeviceHandle(Device *g, unsigned *is_mig) { *is_mig = g->parent != NULL; return OK; }
int nvmlDeviceGetGpuInstanceId(Device *g, unsigned *id) {
    if (!g->parent) return INVALID;
    *id = (unsigned)(g - g->parent->instances) + 1;
    return OK;
}
int nvmlDeviceGetComputeInstanceId(Device *g, unsigned *id) {
    *id = 0;
    return g->parent ? OK : INVALID;
}
int nvmlDeviceGetAttributes_v2(Device *g, Attributes *to) {
    if (!g->parent || !g->slices) return NOT_SUPPORTED; /* the real one answers for MIG instances only */
    memset(to, 0, sizeof *to);
    to->multiprocessors = g->multiprocessors;
    to->gpu_slices = to->compute_slices = g->slices;
    to->memory_mb = g->memory_mb;
    return OK;
}

/* --- energy and power -------------------------------------------------------------------------------------------- */

int nvmlDeviceGetTotalEnergyConsumption(Device *g, unsigned long long *millijoule) {
    double at_s;
    int status = check(g);
    if (status) return status;
    if (!g->counter) return NOT_SUPPORTED;
    *millijoule = counter_mj(g, now_s(), &at_s);
    return OK;
}
int nvmlDeviceGetPowerUsage(Device *g, unsigned *milliwatt) {
    double at_s;
    int status = check(g);
    if (!status) status = power_status(g);
    if (!status) *milliwatt = power_mw(g, now_s(), g->usage_average ? 1 : g->window, &at_s);
    return status;
}
int nvmlDeviceGetFieldValues(Device *g, int n, FieldValue *values) {
    int status = check(g);
    double t = now_s();
    if (status) return status;
    for (int i = 0; i < n; i++) {
        FieldValue *v = &values[i];
        double at_s = t;
        v->value.ull = 0;
        v->latency_us = (int64_t)(g->latency * 1e6);
        v->type = TYPE_UNSIGNED_INT;
        v->status = NOT_SUPPORTED;
        v->timestamp_us = (int64_t)floor((epoch_s() + t) * 1e6 + 0.5);
        if (v->scope != 0) continue; /* of the module or the memory alone */
        if (v->field == FIELD_ENERGY && g->counter) {
            v->status = OK;
            v->type = TYPE_UNSIGNED_LONG_LONG;
            v->value.ull = counter_mj(g, t, &at_s);
        } else if (v->field == FIELD_POWER_INSTANT && g->instant) {
            v->status = power_status(g);
            v->value.ui = power_mw(g, t, g->window, &at_s);
        } else if (v->field == FIELD_POWER_AVERAGE && g->average) {
            v->status = power_status(g);
            v->value.ui = power_mw(g, t, 1, &at_s);
        }
        v->timestamp_us = (int64_t)floor((epoch_s() + (g->stamp_call ? t : at_s)) * 1e6 + 0.5);
    }
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(Device *g, unsigned *mw) { return answer(g, mw, (unsigned)(g->limit * 1e3)); }
int nvmlDeviceGetPowerManagementLimit(Device *g, unsigned *mw) { return answer(g, mw, (unsigned)(g->limit * 1e3)); }
static double default_limit_w(const Device *g) { return g->default_limit > 0 ? g->default_limit : g->limit; }
int nvmlDeviceGetPowerManagementDefaultLimit(Device *g, unsigned *mw) {
    return answer(g, mw, (unsigned)(default_limit_w(g) * 1e3));
}
int nvmlDeviceGetPowerManagementLimitConstraints(Device *g, unsigned *least_mw, unsigned *most_mw) {
    *most_mw = (unsigned)(default_limit_w(g) * 1e3);
    return answer(g, least_mw, 100000);
}

/* --- constants that other tools ask for -------------------------------------------------------------------------- */

int nvmlDeviceGetUtilizationRates(Device *g, unsigned gpu_memory[2]) {
    gpu_memory[1] = 40;
    return answer(g, &gpu_memory[0], 90);
}
int nvmlDeviceGetMemoryInfo(Device *g, unsigned long long total_free_used[3]) {
    total_free_used[0] = 80ull << 30;
    total_free_used[1] = 20ull << 30;
    total_free_used[2] = 60ull << 30;
    return check(g);
}
int nvmlDeviceGetTemperature(Device *g, int sensor, unsigned *celsius) { (void)sensor; return answer(g, celsius, 60); }
int nvmlDeviceGetTemperatureV(Device *g, unsigned version_sensor_celsius[3]) {
    return answer(g, &version_sensor_celsius[2], 60);
}
int nvmlDeviceGetClockInfo(Device *g, int type, unsigned *mhz) { (void)type; return answer(g, mhz, (unsigned)g->clock); }
int nvmlDeviceGetMaxClockInfo(Device *g, int type, unsigned *mhz) {
    (void)type;
    return answer(g, mhz, (unsigned)g->max_clock);
}
int nvmlDeviceGetPowerState(Device *g, unsigned *state) { return answer(g, state, 0); }
int nvmlDeviceGetArchitecture(Device *g, unsigned *architecture) { *architecture = 7; return known(g) ? OK : INVALID; }
int nvmlDeviceGetCudaComputeCapability(Device *g, int *major, int *minor) {
    *major = 8, *minor = 0;
    return known(g) ? OK : INVALID;
}
int nvmlDeviceGetPersistenceMode(Device *g, unsigned *mode) { return answer(g, mode, 1); }
int nvmlDeviceGetComputeMode(Device *g, unsigned *mode) { return answer(g, mode, 0); }
int nvmlDeviceGetComputeRunningProcesses_v3(Device *g, unsigned *n, void *infos) { (void)infos; return answer(g, n, 0); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *g, unsigned *n, void *infos) { (void)infos; return answer(g, n, 0); }
int nvmlDeviceGetC2cModeInfoV(Device *g, void *info) { (void)info; return known(g) ? NOT_SUPPORTED : INVALID; }
int nvmlDeviceGetCurrentClocksEventReasons(Device *g, unsigned long long *reasons) {
    *reasons = (unsigned long long)g->reasons;
    return check(g);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *g, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(g, reasons);
}
