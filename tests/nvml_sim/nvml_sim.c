/* A stand-in for libnvidia-ml.so.1: GPUs whose power over time is known exactly.
 *
 * NVML_SIM names a text file, read at nvmlInit, with one line per GPU:
 *   <uuid> <name> <low W> <high W> <period s> <has counter 0|1> <reset at s> <error from s> <error until s>
 * Power is `high` in the first half of each period, then `low`; a negative time means never. Time is the number in the
 * file that NVML_SIM_CLOCK names (tests turn it by hand), else the unix time less NVML_SIM_EPOCH.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, LOST = 15, UNKNOWN = 999 };

typedef struct {
    char uuid[96], name[96];
    double low_w, high_w, period_s, reset_s, error_s, recover_s;
    int has_counter;
} Gpu;

static Gpu gpus[16];
static unsigned count;
static int ready;

static double now_s(void) {
    const char *path = getenv("NVML_SIM_CLOCK"), *epoch = getenv("NVML_SIM_EPOCH");
    double seconds = 0;
    if (path) {
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%lf", &seconds) != 1) seconds = 0;
        if (file) fclose(file);
        return seconds;
    }
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec * 1e-9 - (epoch ? atof(epoch) : 0);
}

static double power_w(const Gpu *g, double t) {
    return fmod(t, g->period_s) < g->period_s / 2 ? g->high_w : g->low_w;
}

static double energy_j(const Gpu *g, double t) {
    double half = g->period_s / 2, rest = fmod(t, g->period_s);
    double whole = floor(t / g->period_s) * half * (g->high_w + g->low_w);
    return whole + g->high_w * fmin(rest, half) + g->low_w * fmax(0, rest - half);
}

static int check(const Gpu *g) {
    double t = now_s();
    if (!ready) return UNINITIALIZED;
    if (g < gpus || g >= gpus + count) return INVALID;
    return g->error_s >= 0 && t >= g->error_s && (g->recover_s < 0 || t < g->recover_s) ? LOST : OK;
}

static int copy(char *to, unsigned size, const char *from) {
    snprintf(to, size, "%s", from);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *path = getenv("NVML_SIM");
    FILE *file = path ? fopen(path, "r") : NULL;
    (void)flags;
    if (!file) return UNKNOWN;
    for (count = 0; count < 16; count++) {
        Gpu *g = &gpus[count];
        if (fscanf(file, "%95s %95s %lf %lf %lf %d %lf %lf %lf", g->uuid, g->name, &g->low_w, &g->high_w, &g->period_s,
                   &g->has_counter, &g->reset_s, &g->error_s, &g->recover_s) != 9)
            break;
    }
    fclose(file);
    ready = 1;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { ready = 0; return OK; }

int nvmlDeviceGetCount_v2(unsigned *n) {
    *n = count;
    return ready ? OK : UNINITIALIZED;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **device) {
    if (index >= count) return INVALID;
    *device = &gpus[index];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **device) {
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(uuid, gpus[i].uuid)) { *device = &gpus[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(Gpu *g, char *uuid, unsigned size) { return copy(uuid, size, g->uuid); }
int nvmlDeviceGetName(Gpu *g, char *name, unsigned size) { return copy(name, size, g->name); }

int nvmlDeviceGetTotalEnergyConsumption(Gpu *g, unsigned long long *millijoule) {
    int error = check(g);
    double t = now_s();
    if (error) return error;
    if (!g->has_counter) return NOT_SUPPORTED;
    double since_j = g->reset_s >= 0 && t >= g->reset_s ? energy_j(g, g->reset_s) : -1e6;
    *millijoule = (unsigned long long)((energy_j(g, t) - since_j) * 1e3);
    return OK;
}
int nvmlDeviceGetPowerUsage(Gpu *g, unsigned *milliwatt) {
    int error = check(g);
    if (!error) *milliwatt = (unsigned)(power_w(g, now_s()) * 1e3);
    return error;
}
int nvmlDeviceGetEnforcedPowerLimit(Gpu *g, unsigned *milliwatt) {
    int error = check(g);
    if (!error) *milliwatt = (unsigned)(g->high_w * 1e3);
    return error;
}
int nvmlSystemGetDriverVersion(char *version, unsigned size) { return copy(version, size, "stand-in"); }
const char *nvmlErrorString(int code) {
    return code == LOST ? "GPU is lost" : code == NOT_SUPPORTED ? "Not Supported" : code == NOT_FOUND ? "Not Found" : "Unknown Error";
}
