/* A program that tries to get out. Each argument is one attempt; one line per attempt: NAME RESULT, where RESULT is
   `ok` (with a value) or an errno name. Raw system calls where libc would try something else first. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static void say(const char *name, long result)
{
    if (result < 0)
        printf("%s %s\n", name, strerrorname_np(errno));
    else
        printf("%s ok %ld\n", name, result);
    fflush(stdout);
}

static long open_fds(void)
{
    long count = 0;
    for (int fd = 0; fd < 4096; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static long fill(const char *path)
{
    static char block[1 << 20];
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    for (int i = 0; i < 4096; i++)
        if (write(fd, block, sizeof block) < 0)
            return -1;
    return 0;
}

static long touch_memory(void)
{
    size_t size = 1UL << 30;
    char *p = malloc(size);
    if (!p)
        return -1;
    memset(p, 1, size);
    return 0;
}

static long raise_limit(int resource)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    return setrlimit(resource, &limit);
}

/* Leave a process in a session of its own that would live on. */
static long daemonize(void)
{
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        setsid();
        if (syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0) {
            signal(SIGTERM, SIG_IGN);
            signal(SIGHUP, SIG_IGN);
            for (;;)
                pause();
        }
        _exit(0);
    }
    return pid;
}

int main(int argc, char **argv)
{
    extern char **environ;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *path = strchr(a, ':');
        path = path ? path + 1 : "";
        errno = 0;
        if (!strncmp(a, "write:", 6)) say(a, open(path, O_WRONLY | O_CREAT, 0600));
        else if (!strncmp(a, "read:", 5)) say(a, open(path, O_RDONLY | O_NONBLOCK));
        else if (!strncmp(a, "exec:", 5)) say(a, syscall(SYS_execve, path, argv, environ));
        else if (!strncmp(a, "unlink:", 7)) say(a, unlink(path));
        else if (!strncmp(a, "chmod:", 6)) say(a, chmod(path, 0777));
        else if (!strncmp(a, "fill:", 5)) say(a, fill(path));
        else if (!strcmp(a, "mknod")) say(a, mknod("/proc/n", S_IFCHR | 0600, makedev(1, 5)));
        else if (!strcmp(a, "mount")) say(a, mount("tmpfs", "/tmp", "tmpfs", 0, ""));
        else if (!strcmp(a, "remount")) say(a, mount("", "/", "", MS_REMOUNT | MS_BIND, ""));
        else if (!strcmp(a, "umount")) say(a, umount2("/", MNT_DETACH));
        else if (!strcmp(a, "chroot")) say(a, chroot("/tmp"));
        else if (!strcmp(a, "unshare")) say(a, unshare(CLONE_NEWUSER));
        else if (!strcmp(a, "setns")) say(a, setns(0, 0));
        else if (!strcmp(a, "socket")) say(a, socket(AF_UNIX, SOCK_STREAM, 0));
        else if (!strcmp(a, "ptrace")) say(a, syscall(SYS_ptrace, 16, 1, 0, 0));
        else if (!strcmp(a, "kill")) say(a, syscall(SYS_kill, 1, SIGKILL));
        else if (!strcmp(a, "bpf")) say(a, syscall(SYS_bpf, 0, 0, 0));
        else if (!strcmp(a, "ioctl")) say(a, syscall(SYS_ioctl, 0, 0, 0));
        else if (!strcmp(a, "symlink")) say(a, symlink("/", "/proc/l"));
        else if (!strcmp(a, "handle")) say(a, syscall(SYS_open_by_handle_at, 0, 0, 0));
        else if (!strcmp(a, "fork")) say(a, syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
        else if (!strcmp(a, "execveat")) say(a, syscall(SYS_execveat, 0, "", argv, environ, AT_EMPTY_PATH));
        else if (!strcmp(a, "again")) say(a, syscall(SYS_execveat, 64, "", argv, environ, AT_EMPTY_PATH));
        else if (!strcmp(a, "dup")) say(a, dup2(0, 64));
        else if (!strcmp(a, "nofile")) say(a, raise_limit(RLIMIT_NOFILE));
        else if (!strcmp(a, "nproc")) say(a, raise_limit(RLIMIT_NPROC));
        else if (!strcmp(a, "pid")) say(a, getpid());
        else if (!strcmp(a, "ppid")) say(a, getppid());
        else if (!strcmp(a, "fds")) say(a, open_fds());
        else if (!strcmp(a, "env")) say(a, environ[0] != NULL);
        else if (!strcmp(a, "stdin")) say(a, read(0, &errno, 1));
        else if (!strcmp(a, "memory")) say(a, touch_memory());
        else if (!strcmp(a, "daemon")) say(a, daemonize());
        else if (!strcmp(a, "bomb")) for (;;) syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        else if (!strcmp(a, "spin")) for (;;) ;
        else if (!strcmp(a, "sleep")) for (;;) sleep(1000);
        else if (!strcmp(a, "flood")) { for (;;) if (write(1, argv, 8) < 0) return 9; }
        else if (!strcmp(a, "crash")) abort();
        else return 99;
    }
    return 7;
}
