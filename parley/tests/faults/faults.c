/* Preloaded into a server under test: lets system calls on the store's files fail while a file of that name lies in
 * $FAULTS_DIR. `sync`: fsync, fdatasync and sync_file_range answer EIO. `write`: a write to a journal or to the
 * high-water record takes half of the bytes and the next answers EIO. `short`: such writes take half of the bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int armed(const char *fault) {
  const char *dir = getenv("FAULTS_DIR");
  char path[PATH_MAX];
  if (dir == NULL) return 0;
  snprintf(path, sizeof path, "%s/%s", dir, fault);
  return access(path, F_OK) == 0;
}

static int is_store_file(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t bytes = readlink(link, path, sizeof path - 1);
  if (bytes <= 0) return 0;
  path[bytes] = 0;
  const char *end = path + bytes;
  return (bytes > 4 && strcmp(end - 4, ".jnl") == 0) || (bytes > 10 && strcmp(end - 10, "high-water") == 0);
}

static __thread int failing = 0;

/* How many of the bytes to take; -1: fail. */
static ssize_t take(int fd, size_t count) {
  int error = errno;
  ssize_t taken = (ssize_t)count;
  if (count > 1) {
    int write_fails = armed("write");
    if ((write_fails || armed("short")) && is_store_file(fd)) {
      taken = write_fails && failing ? -1 : (ssize_t)(count / 2);
      failing = write_fails && !failing;
    }
  }
  errno = taken < 0 ? EIO : error;
  return taken;
}

ssize_t write(int fd, const void *bytes, size_t count) {
  static ssize_t (*real)(int, const void *, size_t);
  if (real == NULL) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  ssize_t taken = take(fd, count);
  return taken < 0 ? -1 : real(fd, bytes, (size_t)taken);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
  static ssize_t (*real)(int, const void *, size_t, off64_t);
  if (real == NULL) real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
  ssize_t taken = take(fd, count);
  return taken < 0 ? -1 : real(fd, bytes, (size_t)taken, at);
}

static int sync_with(const char *name, int fd) {
  if (armed("sync")) {
    errno = EIO;
    return -1;
  }
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  return real(fd);
}

int fsync(int fd) { return sync_with("fsync", fd); }

int fdatasync(int fd) { return sync_with("fdatasync", fd); }

int sync_file_range(int fd, off64_t at, off64_t bytes, unsigned int flags) {
  if (armed("sync")) {
    errno = EIO;
    return -1;
  }
  int (*real)(int, off64_t, off64_t, unsigned int) =
      (int (*)(int, off64_t, off64_t, unsigned int))dlsym(RTLD_NEXT, "sync_file_range");
  return real(fd, at, bytes, flags);
}
