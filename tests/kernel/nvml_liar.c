/* A libnvidia-ml.so.1 that misbehaves as a test says: with -DON_LOAD=…, -DON_INIT=…, -DON_UUID=…, -DON_SHUTDOWN=… (C
 * statements; `index` is the GPU in the third), or with other answers. Functions that are not here are not there, which has an error of its own.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef ON_LOAD
#define ON_LOAD
#endif
#ifndef ON_INIT
#define ON_INIT
#endif
#ifndef ON_UUID
#define ON_UUID
#endif
#ifndef ON_SHUTDOWN
#define ON_SHUTDOWN
#endif
#ifndef COUNT
#define COUNT 2
#endif
#ifndef VERSION
#define VERSION "550.163.01"
#endif
#ifndef UUID
#define UUID "GPU-12345678-1234-1234-1234-12345678000%u"
#endif
#ifndef MINOR
#define MINOR index
#endif
#ifndef NAME
#define NAME "Liar %u"
#endif

enum { SUCCESS = 0, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, UNKNOWN = 999 };

/* Where a call was told to fail, or 0. */
static int answer;

/* What this process may do: uid, gid, number of groups, no_new_privs, death signal, dumpable, core, highest descriptor. */
static const char *who(void) {
    static char text[96];
    uid_t uid[3];
    gid_t gid[3];
    int death = 0, highest = 0;
    struct rlimit core;
    struct dirent *entry;
    DIR *fds = opendir("/proc/self/fd");
    while (fds && (entry = readdir(fds)))
        if (atoi(entry->d_name) > highest && atoi(entry->d_name) != dirfd(fds)) highest = atoi(entry->d_name);
    getresuid(uid, uid + 1, uid + 2);
    getresgid(gid, gid + 1, gid + 2);
    prctl(PR_GET_PDEATHSIG, &death);
    getrlimit(RLIMIT_CORE, &core);
    snprintf(text, sizeof text, "u%d,%d,%d g%d,%d,%d n%d p%d s%d d%d c%d f%d t%d", uid[0], uid[1], uid[2], gid[0], gid[1],
             gid[2], getgroups(0, NULL), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), death,
             prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), (int)core.rlim_max, highest, getsid(0) == getpid());
    return text;
}

/* A process that is in no session and no group of ours. */
static void daemon_of_its_own(const char *name) {
    if (fork()) return;
    setsid();
    if (fork()) _exit(0);
    prctl(PR_SET_NAME, name, 0, 0, 0);
    for (int fd = 0; fd < 16; fd++) close(fd);
    for (;;) pause();
}

/* Whether more than `most` bytes can be written into the file open as `fd`. */
static int can_write(int fd, int most) {
    static char text[4096];
    for (int wrote = 0; wrote <= most; wrote += (int)sizeof text)
        if (pwrite(fd, text, sizeof text, wrote) != (ssize_t)sizeof text) return 0;
    return 1;
}

__attribute__((constructor)) static void loaded(void) {
    (void)who;
    (void)daemon_of_its_own;
    (void)can_write;
    ON_LOAD;
}

static int put(char *to, unsigned size, const char *format, unsigned index) {
    snprintf(to, size, format, index);
    return answer;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ON_INIT;
    return answer;
}

int nvmlShutdown(void) {
    ON_SHUTDOWN;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error";
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) {
    return put(to, size, VERSION, 0);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = COUNT;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(uintptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *to, unsigned size) {
    unsigned index = (unsigned)(uintptr_t)handle - 1;
    answer = SUCCESS;
    ON_UUID;
    return put(to, size, UUID, index);
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
    unsigned index = (unsigned)(uintptr_t)handle - 1;
    (void)index;
    *minor = (unsigned)(MINOR);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *to, unsigned size) {
    return put(to, size, NAME, (unsigned)(uintptr_t)handle - 1);
}
