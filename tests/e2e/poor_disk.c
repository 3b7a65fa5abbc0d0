/* Answers as file systems do that lack something: POOR_DISK names what, of `links`, `locks` and `sync`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int lacks(const char *what) {
    const char *poor = getenv("POOR_DISK");
    return poor && strstr(poor, what) != NULL;
}

static int refuse(int error) {
    errno = error;
    return -1;
}

int link(const char *from, const char *to) {
    int (*next)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
    return lacks("links") ? refuse(EPERM) : next(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    int (*next)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    return lacks("links") ? refuse(EPERM) : next(from_folder, from, to_folder, to, flags);
}

int flock(int file, int operation) {
    int (*next)(int, int) = dlsym(RTLD_NEXT, "flock");
    return lacks("locks") ? refuse(ENOLCK) : next(file, operation);
}

int fsync(int file) {
    int (*next)(int) = dlsym(RTLD_NEXT, "fsync");
    struct stat found;
    if (lacks("sync") && fstat(file, &found) == 0 && S_ISDIR(found.st_mode))
        return refuse(EINVAL);
    return next(file);
}
