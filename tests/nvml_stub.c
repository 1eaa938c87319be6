/* A libnvidia-ml.so.1 without a GPU, so that the real binding runs in tests: boards, their power over time,
 * their sensors' update periods and averaging windows, and every fault, all from a script.
 *
 * $NVML_STUB names the script. A line is a word and its values; `board` begins another board, and what stands
 * before the first board is about the library. Times are seconds since `start` (CLOCK_MONOTONIC; the moment of
 * nvmlInit where it is not given).
 *
 *     driver 550.54.15 | nvml 12.550.54.15 | start 1234.5
 *     board UUID PCI NAME...         a name may have spaces
 *     capability 9 0 | arch 9 | mig 1 | mig_uuid MIG-... | virtualization 2 | ecc 1 | persistence 1
 *     limit CURRENT DEFAULT (W) | process PID [FROM] | clocks SM MEMORY | temperature C | reasons MASK
 *     power T W                      from T on; the first T is 0
 *     repeat S                       the power repeats after S seconds
 *     sensor UPDATE WINDOW           instantaneous power: the mean of the window before the last update
 *     average UPDATE WINDOW          averaged power
 *     ripple W                       seven values around the truth in turn, one per update; powers only
 *     counter UPDATE JOULES [WRAP]   the energy counter: update period, joules at start, modulo in mJ
 *     reload T                       the counter begins again from 0
 *     freeze T                       sensors and counter stand still from T on
 *     fault WHAT CODE [FROM [TO]]    WHAT (a function, or field:186) returns CODE
 *     value WHAT NUMBER [FROM [TO]]  WHAT says NUMBER (mW, mJ, ...); nan is a field of type double
 *     delay WHAT S [FROM [TO]]       WHAT takes S seconds
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, BAD_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };
enum { BOARDS = 24, SEGMENTS = 64, RULES = 128, PROCESSES = 8 };
enum { FIELD_ENERGY = 83, FIELD_AVERAGE = 185, FIELD_INSTANT = 186 };
enum { TYPE_DOUBLE = 0, TYPE_UINT = 1, TYPE_ULL = 3 };

struct sensor { double update_s, window_s; };

struct board {
    char uuid[80], pci[32], name[96], mig_uuid[80];
    int major, minor, arch, mig, virtualization, ecc, persistence, processes, segments;
    unsigned limit_w, default_limit_w, sm_mhz, memory_mhz, temperature_c, pids[PROCESSES];
    unsigned long long reasons;
    double at_s[SEGMENTS], watts[SEGMENTS], repeat_s, ripple_w, freeze_s, reload_s, pids_from_s[PROCESSES];
    double counter_update_s, counter_j, wrap_mj;
    struct sensor instant, average;
};

struct rule {
    char kind, what[64]; /* kind: f, v or d */
    int board;           /* -1: the library and every board */
    double value, from_s, to_s;
};

struct field { /* one entry of nvmlDeviceGetFieldValues */
    unsigned id, scope;
    long long timestamp_us, latency_us;
    int type, code;
    union { double d; unsigned ui; unsigned long long ull; } value;
};

struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

static struct board boards[BOARDS];
static struct rule rules[RULES];
static int board_count, rule_count, initialized;
static char driver[80] = "550.54.15", library[80] = "12.550.54.15";
static double start_s = -1;
static int mig_handle; /* its address stands for the one MIG device there may be */

static double clock_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double since_s(void) { return clock_s() - start_s; }

static void defaults(struct board *b) {
    memset(b, 0, sizeof *b);
    b->major = 9, b->arch = 9, b->limit_w = b->default_limit_w = 350;
    b->sm_mhz = 1755, b->memory_mhz = 1593, b->temperature_c = 45;
    b->freeze_s = b->reload_s = INFINITY;
    b->instant = (struct sensor){0.1, 0.025}, b->average = (struct sensor){0.1, 1.0};
    b->counter_update_s = 0.1, b->counter_j = 1000;
}

static void add_rule(char kind, const char *rest) {
    struct rule *r = &rules[rule_count];
    char number[32];
    r->kind = kind, r->board = board_count - 1, r->from_s = -INFINITY, r->to_s = INFINITY;
    if (rule_count < RULES && sscanf(rest, "%63s %31s %lf %lf", r->what, number, &r->from_s, &r->to_s) >= 2) {
        r->value = strtod(number, NULL);
        rule_count++;
    }
}

static void line(const char *word, char *rest) {
    struct board *b = &boards[board_count ? board_count - 1 : 0];
    if (!strcmp(word, "driver")) sscanf(rest, "%79s", driver);
    else if (!strcmp(word, "nvml")) sscanf(rest, "%79s", library);
    else if (!strcmp(word, "start")) sscanf(rest, "%lf", &start_s);
    else if (!strcmp(word, "board") && board_count < BOARDS) {
        b = &boards[board_count++];
        defaults(b);
        sscanf(rest, "%79s %31s %95[^\n]", b->uuid, b->pci, b->name);
    } else if (!strcmp(word, "capability")) sscanf(rest, "%d %d", &b->major, &b->minor);
    else if (!strcmp(word, "arch")) sscanf(rest, "%d", &b->arch);
    else if (!strcmp(word, "mig")) sscanf(rest, "%d", &b->mig);
    else if (!strcmp(word, "mig_uuid")) sscanf(rest, "%79s", b->mig_uuid);
    else if (!strcmp(word, "virtualization")) sscanf(rest, "%d", &b->virtualization);
    else if (!strcmp(word, "ecc")) sscanf(rest, "%d", &b->ecc);
    else if (!strcmp(word, "persistence")) sscanf(rest, "%d", &b->persistence);
    else if (!strcmp(word, "limit")) sscanf(rest, "%u %u", &b->limit_w, &b->default_limit_w);
    else if (!strcmp(word, "process") && b->processes < PROCESSES) {
        b->pids_from_s[b->processes] = -INFINITY;
        sscanf(rest, "%u %lf", &b->pids[b->processes], &b->pids_from_s[b->processes]);
        b->processes++;
    } else if (!strcmp(word, "clocks")) sscanf(rest, "%u %u", &b->sm_mhz, &b->memory_mhz);
    else if (!strcmp(word, "temperature")) sscanf(rest, "%u", &b->temperature_c);
    else if (!strcmp(word, "reasons")) sscanf(rest, "%llu", &b->reasons);
    else if (!strcmp(word, "power") && b->segments < SEGMENTS) {
        sscanf(rest, "%lf %lf", &b->at_s[b->segments], &b->watts[b->segments]);
        b->segments++;
    } else if (!strcmp(word, "repeat")) sscanf(rest, "%lf", &b->repeat_s);
    else if (!strcmp(word, "sensor")) sscanf(rest, "%lf %lf", &b->instant.update_s, &b->instant.window_s);
    else if (!strcmp(word, "average")) sscanf(rest, "%lf %lf", &b->average.update_s, &b->average.window_s);
    else if (!strcmp(word, "ripple")) sscanf(rest, "%lf", &b->ripple_w);
    else if (!strcmp(word, "counter"))
        sscanf(rest, "%lf %lf %lf", &b->counter_update_s, &b->counter_j, &b->wrap_mj);
    else if (!strcmp(word, "reload")) sscanf(rest, "%lf", &b->reload_s);
    else if (!strcmp(word, "freeze")) sscanf(rest, "%lf", &b->freeze_s);
    else if (!strcmp(word, "fault")) add_rule('f', rest);
    else if (!strcmp(word, "value")) add_rule('v', rest);
    else if (!strcmp(word, "delay")) add_rule('d', rest);
    else {
        fprintf(stderr, "nvml_stub: unknown word %s\n", word);
        abort();
    }
}

static void read_script(void) {
    const char *path = getenv("NVML_STUB");
    FILE *script = path ? fopen(path, "r") : NULL;
    char text[512], word[32];
    board_count = rule_count = 0;
    start_s = -1;
    while (script && fgets(text, sizeof text, script)) {
        int used = 0;
        if (sscanf(text, "%31s%n", word, &used) == 1) line(word, text + used);
    }
    if (script) fclose(script);
    if (start_s < 0) start_s = clock_s();
}

/* The rule of a kind that holds for a call now, or NULL. */
static const struct rule *rule_for(char kind, const struct board *b, const char *what) {
    double now_s = since_s();
    for (int i = 0; i < rule_count; i++) {
        const struct rule *r = &rules[i];
        if (r->kind == kind && (r->board < 0 || (b && b == &boards[r->board])) && !strcmp(r->what, what) &&
            r->from_s <= now_s && now_s < r->to_s)
            return r;
    }
    return NULL;
}

/* What a call meets before it answers: its delay, then its fault. "*" is every call about a board. */
static int enter(const struct board *b, const char *what) {
    const struct rule *r = rule_for('d', b, what);
    if (r) {
        struct timespec wait = {(time_t)r->value, (long)(1e9 * (r->value - floor(r->value)))};
        nanosleep(&wait, NULL);
    }
    if (!(r = rule_for('f', b, what)) && b) r = rule_for('f', b, "*");
    return r ? (int)r->value : OK;
}

/* Joules from `start` to t; before it the power was that of the first segment. */
static double joules(const struct board *b, double t) {
    double first_w = b->segments ? b->watts[0] : 0, sum = 0, rounds = 0;
    if (t <= 0) return first_w * t;
    if (b->repeat_s > 0) {
        rounds = floor(t / b->repeat_s);
        t -= rounds * b->repeat_s;
    }
    for (int pass = 0; pass < 2; pass++) { /* the whole period, then the rest of it */
        double end = pass ? t : b->repeat_s, part = 0;
        for (int i = 0; i < b->segments; i++) {
            double until = i + 1 < b->segments ? fmin(end, b->at_s[i + 1]) : end;
            if (until > b->at_s[i]) part += b->watts[i] * (until - b->at_s[i]);
        }
        sum += pass ? part : rounds * part;
    }
    return sum;
}

static double sensed_mw(const struct board *b, struct sensor s) {
    double tick = floor(fmin(since_s(), b->freeze_s) / s.update_s), end = tick * s.update_s;
    double mean_w = (joules(b, end) - joules(b, end - s.window_s)) / s.window_s;
    double step = fmod(fmod(tick * 3, 7) + 7, 7);
    return 1e3 * (mean_w + b->ripple_w * (step - 3) / 3);
}

static double counted_mj(const struct board *b) {
    double now_s = fmin(since_s(), b->freeze_s);
    double tick_s = floor(now_s / b->counter_update_s) * b->counter_update_s;
    double mj = tick_s < b->reload_s ? 1e3 * (b->counter_j + joules(b, tick_s))
                                     : 1e3 * (joules(b, tick_s) - joules(b, b->reload_s));
    return b->wrap_mj > 0 ? fmod(mj, b->wrap_mj) : mj;
}

static int number(struct board *b, const char *what, double truth, double *out) {
    int code = initialized ? enter(b, what) : UNINITIALIZED;
    const struct rule *r = rule_for('v', b, what);
    *out = r ? r->value : truth;
    return code;
}

static int answer(struct board *b, const char *what, double truth, unsigned *out) {
    double value;
    int code = number(b, what, truth, &value);
    if (code == OK) *out = (unsigned)(long long)value;
    return code;
}

static int text(struct board *b, const char *what, const char *found, char *out, unsigned size) {
    int code = initialized ? enter(b, what) : UNINITIALIZED;
    if (code == OK && strlen(found) >= size) code = TOO_SMALL;
    if (code == OK) strcpy(out, found);
    return code;
}

/* The library */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!initialized) read_script();
    int code = enter(NULL, "nvmlInit");
    initialized += code == OK;
    return code;
}

int nvmlShutdown(void) {
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return OK;
}

const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error of the stub"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(NULL, __func__, driver, out, size); }

int nvmlSystemGetNVMLVersion(char *out, unsigned size) { return text(NULL, __func__, library, out, size); }

int nvmlDeviceGetCount_v2(unsigned *out) { return answer(NULL, __func__, board_count, out); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct board **out) {
    if (!initialized) return UNINITIALIZED;
    if (index >= (unsigned)board_count) return BAD_ARGUMENT;
    *out = &boards[index];
    return enter(*out, __func__);
}

/* What a board is */

int nvmlDeviceGetUUID(struct board *b, char *out, unsigned size) {
    if ((void *)b == &mig_handle) { /* the MIG device of the first board that has one */
        for (int i = 0; i < board_count; i++)
            if (boards[i].mig_uuid[0]) return text(&boards[i], __func__, boards[i].mig_uuid, out, size);
        return NOT_FOUND;
    }
    return text(b, __func__, b->uuid, out, size);
}

int nvmlDeviceGetName(struct board *b, char *out, unsigned size) { return text(b, __func__, b->name, out, size); }

int nvmlDeviceGetPciInfo_v3(struct board *b, struct pci *out) {
    memset(out, 0, sizeof *out);
    return text(b, __func__, b->pci, out->bus_id, sizeof out->bus_id);
}

int nvmlDeviceGetCudaComputeCapability(struct board *b, int *major, int *minor) {
    *major = b->major, *minor = b->minor;
    return enter(b, __func__);
}

int nvmlDeviceGetArchitecture(struct board *b, unsigned *out) { return answer(b, __func__, b->arch, out); }

int nvmlDeviceGetMigMode(struct board *b, unsigned *current, unsigned *pending) {
    *pending = (unsigned)b->mig;
    return answer(b, __func__, b->mig, current);
}

int nvmlDeviceGetMaxMigDeviceCount(struct board *b, unsigned *out) { return answer(b, __func__, b->mig ? 7 : 0, out); }

int nvmlDeviceGetMigDeviceHandleByIndex(struct board *b, unsigned index, void **out) {
    if (index || !b->mig_uuid[0]) return NOT_FOUND;
    *out = &mig_handle;
    return OK;
}

int nvmlDeviceGetVirtualizationMode(struct board *b, unsigned *out) {
    return answer(b, __func__, b->virtualization, out);
}

int nvmlDeviceGetEccMode(struct board *b, unsigned *current, unsigned *pending) {
    *pending = (unsigned)b->ecc;
    return answer(b, __func__, b->ecc, current);
}

int nvmlDeviceGetPersistenceMode(struct board *b, unsigned *out) { return answer(b, __func__, b->persistence, out); }

int nvmlDeviceGetComputeMode(struct board *b, unsigned *out) { return answer(b, __func__, 0, out); }

int nvmlDeviceGetPowerManagementLimit(struct board *b, unsigned *out) {
    return answer(b, __func__, 1e3 * b->limit_w, out);
}

int nvmlDeviceGetPowerManagementDefaultLimit(struct board *b, unsigned *out) {
    return answer(b, __func__, 1e3 * b->default_limit_w, out);
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct board *b, unsigned *count, struct process *out) {
    unsigned room = *count, there = 0;
    int code = enter(b, "nvmlDeviceGetComputeRunningProcesses");
    if (code != OK) return code;
    for (int i = 0; i < b->processes; i++) {
        if (since_s() < b->pids_from_s[i]) continue;
        if (there < room) out[there] = (struct process){b->pids[i], 1 << 20, 0, 0};
        there++;
    }
    *count = there;
    return there > room ? TOO_SMALL : OK;
}

/* What its sensors say */

int nvmlDeviceGetPowerUsage(struct board *b, unsigned *out) {
    int trailing = b->major > 8 || (b->major == 8 && b->minor > 0); /* all but GA100 from Ampere on */
    return answer(b, __func__, sensed_mw(b, trailing ? b->average : b->instant), out);
}

int nvmlDeviceGetTotalEnergyConsumption(struct board *b, unsigned long long *out) {
    double value;
    int code = number(b, __func__, counted_mj(b), &value);
    if (code == OK) *out = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetClockInfo(struct board *b, unsigned type, unsigned *out) {
    if (type != 1 && type != 2) return BAD_ARGUMENT;
    return answer(b, __func__, type == 1 ? b->sm_mhz : b->memory_mhz, out);
}

int nvmlDeviceGetTemperature(struct board *b, unsigned sensor, unsigned *out) {
    if (sensor) return BAD_ARGUMENT;
    return answer(b, __func__, b->temperature_c, out);
}

static int reasons(struct board *b, const char *what, unsigned long long *out) {
    double value;
    int code = number(b, what, (double)b->reasons, &value);
    if (code == OK) *out = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(struct board *b, unsigned long long *out) {
    return reasons(b, __func__, out);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct board *b, unsigned long long *out) {
    return reasons(b, __func__, out);
}

static void answer_field(struct board *b, struct field *f) {
    char what[32];
    double truth = 0;
    snprintf(what, sizeof what, "field:%u", f->id);
    f->type = f->id == FIELD_ENERGY ? TYPE_ULL : TYPE_UINT;
    f->timestamp_us = (long long)(1e6 * clock_s());
    f->code = enter(b, what);
    if (f->code != OK) return;
    if (f->id == FIELD_ENERGY) truth = counted_mj(b);
    else if (f->id == FIELD_INSTANT && !f->scope) truth = sensed_mw(b, b->instant);
    else if (f->id == FIELD_AVERAGE && !f->scope) truth = sensed_mw(b, b->average);
    else f->code = NOT_SUPPORTED;
    const struct rule *r = rule_for('v', b, what);
    if (r) truth = r->value;
    if (isnan(truth)) f->type = TYPE_DOUBLE, f->value.d = truth;
    else if (f->type == TYPE_ULL) f->value.ull = (unsigned long long)truth;
    else f->value.ui = (unsigned)(long long)truth;
}

int nvmlDeviceGetFieldValues(struct board *b, int count, struct field *fields) {
    int code = initialized ? enter(b, __func__) : UNINITIALIZED;
    for (int i = 0; code == OK && i < count; i++) answer_field(b, &fields[i]);
    return code;
}
