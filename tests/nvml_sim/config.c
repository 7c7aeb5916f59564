/* Reads the configuration of the stand-in: one GPU per line, words `key=value`, a default for every key but uuid. */
#include "sim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBER, SPAN, TEXT };

#define NUM(key, value) {#key, NUMBER, offsetof(Device, key), 0, value, NULL}
#define SPAN_(key) {#key, SPAN, offsetof(Device, key), 0, 0, NULL}
#define STR(key, value) {#key, TEXT, offsetof(Device, key), sizeof(((Device *)0)->key), 0, value}

/* truth.py lists the same keys with the same defaults. */
static const struct {
    const char *key;
    int kind;
    size_t at, size;
    double number;
    const char *text;
} keys[] = {
    STR(uuid, ""), STR(name, "NVIDIA-Sim-A100"), STR(trace, "constant"), STR(path, ""), STR(shape, "linear"), STR(mig, ""),
    NUM(power, 200), NUM(low, 100), NUM(mid, 250), NUM(high, 400), NUM(period, 2), NUM(duty, 0.5), NUM(phase, 0),
    NUM(seed, 1), NUM(bursts, 256), NUM(on, 0.15), NUM(off, 0.25),
    NUM(step, 0.7), NUM(optimizer, 0.15), NUM(every, 20), NUM(dip, 3),
    NUM(counter, 1), NUM(counter_period, 0.1), NUM(counter_offset, 0), NUM(counter_start, 1e6), NUM(counter_step, 0.001),
    NUM(update, 0.1), NUM(window, 0.025), NUM(offset, 0), NUM(power_step, 0.001), NUM(average, 1), NUM(instant, 1),
    NUM(usage_average, 0), NUM(gain, 1), NUM(limit, 400), NUM(stamp_call, 0),
    NUM(default_limit, 0), NUM(clock, 1410), NUM(max_clock, 1410), NUM(reasons, 0),
    NUM(flaky, 0), NUM(latency, 0), NUM(stale, 0), SPAN_(lost), SPAN_(hang), SPAN_(nopower), NUM(reset, INFINITY),
};
enum { KEYS = sizeof keys / sizeof *keys };

static void set_defaults(Device *gpu) {
    memset(gpu, 0, sizeof *gpu);
    for (size_t i = 0; i < KEYS; i++) {
        char *field = (char *)gpu + keys[i].at;
        if (keys[i].kind == NUMBER) *(double *)field = keys[i].number;
        else if (keys[i].kind == SPAN) *(Span *)field = (Span){INFINITY, INFINITY};
        else snprintf(field, keys[i].size, "%s", keys[i].text);
    }
}

static int set(Device *gpu, const char *word, const char *value) {
    for (size_t i = 0; i < KEYS; i++) {
        char *field = (char *)gpu + keys[i].at, *end;
        if (strcmp(word, keys[i].key)) continue;
        if (keys[i].kind == TEXT) {
            snprintf(field, keys[i].size, "%s", value);
            return 0;
        }
        double first = strtod(value, &end);
        if (end == value) return -1;
        if (keys[i].kind == NUMBER) *(double *)field = first;
        else *(Span *)field = (Span){first, *end == ':' ? strtod(end + 1, &end) : INFINITY};
        return *end ? -1 : 0;
    }
    return -1;
}

/* mig=UUID:slices:multiprocessors:MB,UUID:... */
static int set_instances(Device *gpu) {
    char list[sizeof gpu->mig], *rest = list;
    snprintf(list, sizeof list, "%s", gpu->mig);
    gpu->instances = calloc(MAX_MIG, sizeof *gpu->instances);
    for (char *item; (item = strsep(&rest, ",")) && *item && gpu->instance_count < MAX_MIG;) {
        Device *instance = &gpu->instances[gpu->instance_count++];
        if (sscanf(item, "%95[^:]:%u:%u:%llu", instance->uuid, &instance->slices, &instance->multiprocessors,
                   &instance->memory_mb) != 4)
            return -1;
        snprintf(instance->name, sizeof instance->name, "%.70s MIG %ug", gpu->name, instance->slices);
    }
    return 0;
}

int sim_load(const char *path, Device *gpus, unsigned *count) {
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[4096];
    *count = 0;
    if (!file) return -1;
    while (*count < MAX_GPUS && fgets(line, sizeof line, file)) {
        Device *gpu = &gpus[*count];
        char *rest = line;
        line[strcspn(line, "#\r\n")] = 0;
        set_defaults(gpu);
        for (char *word; (word = strsep(&rest, " \t"));) {
            char *value = strchr(word, '=');
            if (!*word || !strcmp(word, "gpu")) continue; /* the line may begin with "gpu", for people */
            if (value) *value++ = 0;
            if (!value || set(gpu, word, value)) {
                fprintf(stderr, "nvml_sim: %s: not understood: %s=%s\n", path, word, value ? value : "");
                fclose(file);
                return -1;
            }
        }
        if (!*gpu->uuid) continue;
        if (set_instances(gpu) || trace_build(gpu)) {
            fclose(file);
            return -1;
        }
        for (unsigned i = 0; i < gpu->instance_count; i++) gpu->instances[i].parent = gpu;
        ++*count;
    }
    fclose(file);
    return 0;
}
