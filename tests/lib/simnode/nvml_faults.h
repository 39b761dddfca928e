/* Faults: the words of NVOCI_SIMNODE_FAULTS; else of the file /.simnode/faults of the node this library lies in; else of
 * /run/.simnode-faults, which `simnode run` makes in its mount namespace.
 *
 * The library finds the node's file by its own real path, from which it takes what the description says. Mounted
 * elsewhere, at /usr/lib or in a container say, it does not find that file.
 */

#include <ctype.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FAULTS_MAX 32
#define FAULTS_TEXT 4096

struct fault {
    char kind[16], call[80]; /* `version` keeps its text in `call` */
    int gpu;                 /* -1: all */
    int value;
};
static struct fault faults[FAULTS_MAX];
static unsigned faults_count;

/* "nvmlDeviceGetCount_v2" and "nvmlDeviceGetCount" are one call here, and so are nvmlInit and nvmlInitWithFlags. */
static void base_name(const char *call, char out[80]) {
    snprintf(out, 80, "%s", call);
    char *suffix = strrchr(out, '_');
    if (suffix && suffix[1] == 'v' && suffix[2] >= '0' && suffix[2] <= '9') *suffix = 0;
    if (!strcmp(out, "nvmlInit") || !strcmp(out, "nvmlInitWithFlags")) strcpy(out, "init");
}

static void add_fault(char *word) {
    struct fault *fault = &faults[faults_count];
    char *value = strchr(word, '='), *more;
    if (faults_count == FAULTS_MAX) return;
    if (value) *value++ = 0;
    if (!strcmp(word, "stdout")) word = "print", value = "init";
    memset(fault, 0, sizeof *fault);
    snprintf(fault->kind, sizeof fault->kind, "%s", word);
    fault->gpu = -1;
    faults_count++;
    if (!value) return;
    if (!strcmp(word, "lost")) {
        fault->gpu = atoi(value);
        return;
    }
    char copy[160];
    snprintf(copy, sizeof copy, "%s", value);
    if ((more = strchr(copy, ':'))) *more = 0, fault->value = atoi(more + 1);
    if ((more = strchr(copy, '@'))) *more = 0, fault->gpu = atoi(more + 1);
    if (!strcmp(word, "version")) snprintf(fault->call, sizeof fault->call, "%.79s", copy);
    else base_name(copy, fault->call);
}

/* ROOT/.simnode/faults for ROOT/usr/lib/libnvidia-ml.so.1, of which the description knows the path below ROOT. */
static int faults_path(char out[PATH_MAX]) {
    static const char file[] = "/.simnode/faults";
    Dl_info info;
    char real[PATH_MAX];
    if (!dladdr((void *)faults_path, &info) || !info.dli_fname || !realpath(info.dli_fname, real)) return 0;
    size_t length = strlen(real), own = strlen(OWN_PATH);
    if (length <= own || strcmp(real + length - own, OWN_PATH)) return 0;
    if (length - own + sizeof file > PATH_MAX) return 0;
    memcpy(out, real, length - own);
    memcpy(out + length - own, file, sizeof file);
    return 1;
}

/* Whether the file is there; a FIFO or the like is not waited for. */
static int read_words(const char *path, char text[FAULTS_TEXT]) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return 0;
    ssize_t size = read(fd, text, FAULTS_TEXT - 1);
    text[size > 0 ? size : 0] = 0;
    close(fd);
    return 1;
}

static void read_faults(void) {
    char text[FAULTS_TEXT] = "", path[PATH_MAX], *rest = text;
    const char *environment = getenv("NVOCI_SIMNODE_FAULTS");
    if (environment) snprintf(text, sizeof text, "%s", environment);
    else if (!faults_path(path) || !read_words(path, text)) read_words("/run/.simnode-faults", text);
    faults_count = 0;
    for (char *word; (word = strtok_r(rest, " \t\n", &rest));) add_fault(word);
}

static const struct fault *find_fault(const char *kind) {
    for EACH (i, faults_count)
        if (!strcmp(faults[i].kind, kind)) return &faults[i];
    return NULL;
}

static void act(const struct fault *fault, const char *call) {
    static int *volatile nowhere;
    if (!strcmp(fault->kind, "hang"))
        for (;;) pause();
    if (!strcmp(fault->kind, "crash")) *nowhere = 1;
    if (!strcmp(fault->kind, "slow")) {
        struct timespec wait = {fault->value / 1000, fault->value % 1000 * 1000000L};
        nanosleep(&wait, NULL);
    }
    if (!strcmp(fault->kind, "print")) {
        printf("%s: a message of the driver library\n", call);
        fflush(stdout);
    }
}

/* What is to happen in `call` for this GPU (-1: none); the code to answer with, or SUCCESS. */
static int meet_faults(const char *call, int gpu) {
    char base[80];
    base_name(call, base);
    for EACH (i, faults_count) {
        const struct fault *fault = &faults[i];
        if (fault->gpu >= 0 && fault->gpu != gpu) continue;
        if (!strcmp(fault->kind, "lost") && gpu >= 0) return GPU_IS_LOST;
        if (strcmp(fault->call, base) && (strcmp(fault->call, "any") || !strcmp(base, "load"))) continue;
        act(fault, call);
        if (!strcmp(fault->kind, "error")) return fault->value;
    }
    return SUCCESS;
}
