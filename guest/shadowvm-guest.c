// The one program of ours inside a guest: the heartbeat agent, the module loader and the loads that tests and
// benchmarks run. One static binary keeps the image small and does not depend on the guest's libraries.
//
//   agent                          beats on the virtio port, obeys the host
//   modules <list>                 loads the kernel modules named in the list, in its order
//   memwriter <MiB> <MiB/s>        dirties random pages at that rate (0: as fast as it can)
//   memcheck <MiB> [writes/s]      a self-checking structure: notices memory of two moments mixed up
//   cpuloop <seconds>              counts a fixed piece of integer work (0: for ever)
//   diskload <path> <how>          reads or writes a disk past the guest's caches, for ever: random|sequential|read
//   diskcheck <path> <status> <writes/s>  notices a disk of another moment than the memory
//   netload <interface> <how> <s>  sends frames as fast as it can: small|large|garbage
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.shadowvm.heartbeat"
#define APP_STATUS_PATH "/run/app-status"
#define BEAT_NS 50000000LL
#define REST_MS_MAX 1000
#define PORT_RETRY_NS 5000000LL
#define PORT_TRIES 2000
#define SLOW_BEATS 10 // memory figures and the status file's identity are looked at every this many beats
#define APP_STATUS_MAX 160
#define INPUT_LINE_MAX 4096
#define OUTPUT_MAX 8192
#define CHILDREN_MAX 16
#define EXEC_ID_MAX 64
#define EXIT_REFUSED 125
#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / 8)
#define MIB_MAX (64 * 1024)

static int64_t clock_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until_ns(int64_t at_ns) {
  struct timespec t = {at_ns / 1000000000LL, at_ns % 1000000000LL};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}

// Tells people, on the serial console; never the host's manager.
__attribute__((format(printf, 1, 2))) static void console(const char *format, ...) {
  char line[512] = "shadowvm-guest: ";
  size_t length = strlen(line);
  va_list arguments;
  va_start(arguments, format);
  int written = vsnprintf(line + length, sizeof line - length - 1, format, arguments);
  va_end(arguments);
  if (written < 0) return;
  length = strlen(line);
  line[length++] = '\n';
  int fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  // Nowhere is left to complain to when the console fails.
  ssize_t ignored = write(fd < 0 ? STDERR_FILENO : fd, line, length);
  (void)ignored;
  if (fd >= 0) close(fd);
}

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) console("could not write %s: %s", path, strerror(errno));
  if (fd >= 0) close(fd);
}

// Whole argument must be a number in [min, max].
static long number_argument(const char *what, const char *text, long min, long max) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || value < min || value > max) {
    fprintf(stderr, "%s must be a whole number from %ld to %ld, not '%s'\n", what, min, max, text);
    exit(2);
  }
  return value;
}

// SplitMix64's finaliser: every input bit reaches every output bit.
static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static uint64_t mix2(uint64_t a, uint64_t b) { return mix(mix(a) ^ b); }

static void *map_pages(size_t bytes) {
  void *region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) {
    fprintf(stderr, "could not allocate %zu bytes: %s\n", bytes, strerror(errno));
    exit(1);
  }
  return region;
}

// ---------------------------------------------------------------------------------------------------------------------
// The line that an application shows to the host through the beats.

static int status_open(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || ftruncate(fd, 0) < 0) console("could not open %s: %s", path, strerror(errno));
  return fd;
}

static int app_status_open(void) { return status_open(APP_STATUS_PATH); }

// One pwrite of an unchanging length: a reader never sees a line that is shorter or longer than it is.
__attribute__((format(printf, 2, 3))) static void app_status_write(int fd, const char *format, ...) {
  char line[APP_STATUS_MAX + 2];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  line[length++] = '\n';
  if (fd >= 0 && pwrite(fd, line, (size_t)length, 0) != length) console("could not write %s", APP_STATUS_PATH);
}

// ---------------------------------------------------------------------------------------------------------------------
// agent

struct child {
  pid_t pid; // 0: free
  char id[EXEC_ID_MAX + 1];
};

struct agent {
  int port_fd; // -1: not open
  bool port_hung_up;
  int signal_fd;
  int meminfo_fd;
  int app_fd; // -1: no application shows a status
  uint64_t beats;
  int64_t next_beat_ns;
  unsigned long mem_total_kib, mem_available_kib;
  bool said_poweroff, said_reboot;
  // Lines that must arrive (exit, bye) wait here while the host does not read. Beats never wait.
  char output[OUTPUT_MAX];
  size_t output_length;
  char input[INPUT_LINE_MAX];
  size_t input_length;
  bool input_overlong; // discarding up to the next newline
  struct child children[CHILDREN_MAX];
};

// Path of the device whose port has our name, or false while it does not exist.
static bool find_port(char *path, size_t size) {
  DIR *ports = opendir("/sys/class/virtio-ports");
  if (ports == NULL) return false;
  bool found = false;
  for (struct dirent *entry; !found && (entry = readdir(ports)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    char name_path[320], name[64] = "";
    snprintf(name_path, sizeof name_path, "/sys/class/virtio-ports/%s/name", entry->d_name);
    int fd = open(name_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    ssize_t length = read(fd, name, sizeof name - 1);
    close(fd);
    if (length <= 0) continue;
    name[strcspn(name, "\n")] = '\0';
    if (strcmp(name, PORT_NAME) != 0) continue;
    snprintf(path, size, "/dev/%s", entry->d_name);
    found = true;
  }
  closedir(ports);
  return found;
}

// Non-blocking is essential: a blocking write to a port whose host side is not connected never returns.
static void open_port(struct agent *agent) {
  char path[300];
  if (!find_port(path, sizeof path)) return;
  agent->port_fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  agent->input_length = 0;
  agent->input_overlong = false;
}

static void close_port(struct agent *agent) {
  close(agent->port_fd);
  agent->port_fd = -1;
}

// Writes what is queued; false when nothing went out. virtio_console takes up to 32 KiB in one buffer, so the queue goes
// whole or not at all and no line is ever cut; a partial write would mean another driver, and then the rest follows.
static bool send_output(struct agent *agent) {
  if (agent->port_fd < 0) return false;
  ssize_t written = write(agent->port_fd, agent->output, agent->output_length);
  if (written <= 0) {
    if (written < 0 && (errno == ENODEV || errno == EPIPE)) close_port(agent); // the device went away
    return false;
  }
  agent->output_length -= (size_t)written;
  memmove(agent->output, agent->output + written, agent->output_length);
  return true;
}

// Queues a line that must arrive. With a full queue it is lost, and the console says so: a bound is better than a guest
// that stops because no host reads.
__attribute__((format(printf, 2, 3))) static void say(struct agent *agent, const char *format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (agent->output_length + (size_t)length > sizeof agent->output) {
    console("dropped a message to the host, which does not read: %.*s", length - 1, line);
    return;
  }
  memcpy(agent->output + agent->output_length, line, (size_t)length);
  agent->output_length += (size_t)length;
  send_output(agent);
}

static void say_bye(struct agent *agent, bool reboot) {
  bool *said = reboot ? &agent->said_reboot : &agent->said_poweroff;
  if (*said) return;
  *said = true;
  say(agent, "bye %s\n", reboot ? "reboot" : "poweroff");
}

// Work that the agent does not wait for; its end is told with its id. True in the child.
static bool fork_child(struct agent *agent, const char *id) {
  struct child *slot = NULL;
  for (int i = 0; i < CHILDREN_MAX && slot == NULL; i++)
    if (agent->children[i].pid == 0) slot = &agent->children[i];
  pid_t pid = slot == NULL ? -1 : fork();
  if (pid < 0) say(agent, "exit %s %d\n", id, EXIT_REFUSED);
  if (pid > 0) {
    slot->pid = pid;
    snprintf(slot->id, sizeof slot->id, "%s", id);
  }
  return pid == 0;
}

static void run_command(struct agent *agent, const char *id, const char *command) {
  if (!fork_child(agent, id)) return;
  // SCHED_RESET_ON_FORK has made the child an ordinary process already; locked memory is not inherited either.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  write_file("/proc/self/oom_score_adj", "0");
  setsid();
  int in = open("/dev/null", O_RDONLY);
  int out = open("/dev/console", O_WRONLY | O_NOCTTY);
  if (out < 0) out = open("/dev/null", O_WRONLY);
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(out, STDERR_FILENO);
  if (in > STDERR_FILENO) close(in);
  if (out > STDERR_FILENO) close(out);
  if (chdir("/root") < 0 && chdir("/") < 0) _exit(EXIT_REFUSED);
  execl("/bin/sh", "sh", "-c", command, (char *)NULL);
  _exit(127);
}

static void set_clock(const char *wall_ms) {
  long long ms = atoll(wall_ms);
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  if (clock_settime(CLOCK_REALTIME, &t) < 0) console("could not set the clock: %s", strerror(errno));
}

// ---------------------------------------------------------------------------------------------------------------------
// identity: a guest that woke up from another one's memory becomes somebody else. What is right already is left alone,
// so that the connections of a guest that stays who it was live on.

#define NIC "eth0"

static _Noreturn void identity_failed(const char *step) {
  console("could not take the new identity: %s: %s", step, strerror(errno));
  _exit(1);
}

static void nic_ioctl(int fd, unsigned long request, struct ifreq *ifr, const char *step) {
  strcpy(ifr->ifr_name, NIC);
  if (ioctl(fd, request, ifr) < 0) identity_failed(step);
}

static void set_nic_up(int fd) {
  struct ifreq ifr = {0};
  nic_ioctl(fd, SIOCGIFFLAGS, &ifr, "read the flags of " NIC);
  ifr.ifr_flags |= IFF_UP;
  nic_ioctl(fd, SIOCSIFFLAGS, &ifr, "take " NIC " up");
}

static void take_mac(int fd, const char *text) {
  unsigned char mac[6];
  if (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6) {
    errno = EINVAL;
    identity_failed("read the MAC");
  }
  struct ifreq ifr = {0};
  nic_ioctl(fd, SIOCGIFHWADDR, &ifr, "read the MAC of " NIC);
  if (memcmp(ifr.ifr_hwaddr.sa_data, mac, sizeof mac) == 0) return;
  // While it is up: taking it down waits for the kernel's grace periods. virtio-net tells QEMU through its control queue,
  // which then takes frames for this address.
  ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  memcpy(ifr.ifr_hwaddr.sa_data, mac, sizeof mac);
  nic_ioctl(fd, SIOCSIFHWADDR, &ifr, "set the MAC of " NIC);
  // The link-local address is made of the MAC when IPv6 comes up, and two guests with one would be in each other's way.
  write_file("/proc/sys/net/ipv6/conf/" NIC "/disable_ipv6", "1");
  write_file("/proc/sys/net/ipv6/conf/" NIC "/disable_ipv6", "0");
}

static struct sockaddr_in ipv4(const char *text) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
    errno = EINVAL;
    identity_failed("read an address");
  }
  return address;
}

static bool has_address(int fd, const struct sockaddr_in *wanted) {
  struct ifreq ifr = {0};
  strcpy(ifr.ifr_name, NIC);
  if (ioctl(fd, SIOCGIFADDR, &ifr) < 0) return false; // it has none
  return ((struct sockaddr_in *)&ifr.ifr_addr)->sin_addr.s_addr == wanted->sin_addr.s_addr;
}

static void take_address(int fd, char *text, const char *gateway) {
  char *slash = strchr(text, '/');
  int prefix = slash == NULL ? -1 : atoi(slash + 1);
  if (prefix < 1 || prefix > 32) {
    errno = EINVAL;
    identity_failed("read the address");
  }
  *slash = '\0';
  struct sockaddr_in address = ipv4(text);
  if (!has_address(fd, &address)) {
    // The first address of an interface takes the place of the old one, and its routes go with that.
    struct sockaddr_in mask = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xffffffffu << (32 - prefix))};
    struct sockaddr_in broadcast = {.sin_family = AF_INET};
    broadcast.sin_addr.s_addr = address.sin_addr.s_addr | ~mask.sin_addr.s_addr;
    struct ifreq ifr = {0};
    memcpy(&ifr.ifr_addr, &address, sizeof address);
    nic_ioctl(fd, SIOCSIFADDR, &ifr, "set the address of " NIC);
    memcpy(&ifr.ifr_netmask, &mask, sizeof mask);
    nic_ioctl(fd, SIOCSIFNETMASK, &ifr, "set the netmask of " NIC);
    memcpy(&ifr.ifr_broadaddr, &broadcast, sizeof broadcast);
    nic_ioctl(fd, SIOCSIFBRDADDR, &ifr, "set the broadcast address of " NIC);
    set_nic_up(fd);
  }
  if (strcmp(gateway, "-") == 0) return;
  struct sockaddr_in via = ipv4(gateway), any = {.sin_family = AF_INET};
  struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
  memcpy(&route.rt_gateway, &via, sizeof via);
  memcpy(&route.rt_dst, &any, sizeof any);
  memcpy(&route.rt_genmask, &any, sizeof any);
  if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST) identity_failed("set the default route");
}

// Two guests from one snapshot would otherwise draw the same "random" numbers.
static void take_seed(const char *hex) {
  struct {
    struct rand_pool_info head;
    unsigned char bytes[64];
  } pool = {.head = {.entropy_count = 0, .buf_size = 0}};
  size_t count = 0;
  for (; count < sizeof pool.bytes && sscanf(hex + 2 * count, "%2hhx", &pool.bytes[count]) == 1; count++) {}
  pool.head.buf_size = (int)count;
  pool.head.entropy_count = (int)count * 8;
  int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0) identity_failed("seed the random pool");
  close(fd);
}

static struct in6_addr ipv6(const char *text) {
  struct in6_addr address;
  if (inet_pton(AF_INET6, text, &address) != 1) {
    errno = EINVAL;
    identity_failed("read an IPv6 address");
  }
  return address;
}

// As <linux/ipv6.h> has it, which can not be included beside the C library's own headers.
struct address6_request {
  struct in6_addr address;
  uint32_t prefix;
  int index;
};

static void take_address6(char *text, const char *gateway) {
  char *slash = strchr(text, '/');
  int prefix = slash == NULL ? -1 : atoi(slash + 1);
  if (prefix < 1 || prefix > 128) {
    errno = EINVAL;
    identity_failed("read the IPv6 address");
  }
  *slash = '\0';
  int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) identity_failed("open an IPv6 socket");
  // The host hands out each address once: nobody need be asked whether it is taken, which takes a second.
  write_file("/proc/sys/net/ipv6/conf/" NIC "/accept_dad", "0");
  int index = (int)if_nametoindex(NIC);
  struct address6_request request = {.address = ipv6(text), .prefix = (uint32_t)prefix, .index = index};
  if (ioctl(fd, SIOCSIFADDR, &request) < 0 && errno != EEXIST) identity_failed("set the IPv6 address of " NIC);
  if (strcmp(gateway, "-") != 0) {
    struct in6_rtmsg route = {.rtmsg_flags = RTF_UP | RTF_GATEWAY, .rtmsg_metric = 1, .rtmsg_ifindex = index};
    route.rtmsg_gateway = ipv6(gateway);
    if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST) identity_failed("set the IPv6 default route");
  }
  close(fd);
}

// <hostname> <mac|-> <address/prefix|-> <gateway|-> <seed, hexadecimal> <wall clock, ms> <IPv6 address/prefix|-> <gateway|->
static _Noreturn void take_identity(char *words) {
  char *word[8], *rest = words;
  for (int i = 0; i < 8; i++)
    if ((word[i] = strsep(&rest, " ")) == NULL || *word[i] == '\0') {
      errno = EINVAL;
      identity_failed("read the eight words");
    }
  set_clock(word[5]);
  take_seed(word[4]);
  if (sethostname(word[0], strlen(word[0])) < 0) identity_failed("set the host name");
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) identity_failed("open a socket");
  if (strcmp(word[1], "-") != 0) take_mac(fd, word[1]);
  if (strcmp(word[2], "-") != 0) take_address(fd, word[2], word[3]);
  if (strcmp(word[6], "-") != 0) take_address6(word[6], word[7]);
  _exit(0);
}

static void reap_children(struct agent *agent) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    for (int i = 0; i < CHILDREN_MAX; i++) {
      if (agent->children[i].pid != pid) continue;
      agent->children[i].pid = 0;
      say(agent, "exit %s %d\n", agent->children[i].id,
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
  }
}

static void beat(struct agent *agent);

static void obey(struct agent *agent, char *line) {
  if (strncmp(line, "ping ", 5) == 0) {
    // The host wants a sign of life now, as after a promotion, and gets its own words back. Not a whole beat: a guest that
    // just woke up under emulation runs every instruction for the first time, which costs it a hundred times as much.
    size_t length = strlen(line);
    line[1] = 'o';
    line[length] = '\n'; // `line` has room for its end
    if (agent->output_length > 0 || agent->port_fd < 0 || write(agent->port_fd, line, length + 1) <= 0) beat(agent);
  } else if (strncmp(line, "rest ", 5) == 0) {
    // So long no beats: whoever the guest serves comes first when it wakes up.
    long ms = atol(line + 5);
    if (ms > 0) agent->next_beat_ns = clock_ns(CLOCK_MONOTONIC) + (ms < REST_MS_MAX ? ms : REST_MS_MAX) * 1000000LL;
  } else if (strcmp(line, "poweroff") == 0) {
    say_bye(agent, false);
    kill(1, SIGUSR2); // busybox's own convention for "init, power off"
  } else if (strcmp(line, "panic") == 0) {
    write_file("/proc/sys/kernel/sysrq", "1");
    write_file("/proc/sysrq-trigger", "c");
  } else if (strncmp(line, "clock ", 6) == 0) {
    set_clock(line + 6);
  } else if (strncmp(line, "exec ", 5) == 0 || strncmp(line, "identity ", 9) == 0) {
    bool identity = line[0] == 'i';
    char *id = line + (identity ? 9 : 5);
    char *command = strchr(id, ' ');
    if (command == NULL || command == id || command - id > EXEC_ID_MAX) {
      console("malformed command from the host: %.80s", line);
      return;
    }
    *command++ = '\0';
    if (!identity)
      run_command(agent, id, command);
    else if (fork_child(agent, id))
      take_identity(command);
  } else {
    console("unknown command from the host: %.80s", line);
  }
}

static void take_input(struct agent *agent, const char *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (bytes[i] == '\n') {
      agent->input[agent->input_length] = '\0';
      if (!agent->input_overlong && agent->input_length > 0) obey(agent, agent->input);
      agent->input_length = 0;
      agent->input_overlong = false;
    } else if (agent->input_length < sizeof agent->input - 1) {
      agent->input[agent->input_length++] = bytes[i];
    } else {
      if (!agent->input_overlong) console("discarded a line of more than %d bytes from the host", INPUT_LINE_MAX);
      agent->input_overlong = true;
    }
  }
}

static void read_port(struct agent *agent) {
  char bytes[1024];
  ssize_t count = read(agent->port_fd, bytes, sizeof bytes);
  if (count > 0) {
    take_input(agent, bytes, (size_t)count);
  } else if (count == 0) {
    agent->port_hung_up = true; // this driver's way to say that no host is connected
    agent->input_length = 0;    // a line that the host left unfinished is no command
    agent->input_overlong = false;
  } else if (errno == ENODEV || errno == EPIPE) {
    close_port(agent);
  }
}

static void refresh_memory(struct agent *agent) {
  char text[256];
  ssize_t length = pread(agent->meminfo_fd, text, sizeof text - 1, 0);
  if (length <= 0) return;
  text[length] = '\0';
  const char *total = strstr(text, "MemTotal:"), *available = strstr(text, "MemAvailable:");
  if (total != NULL) agent->mem_total_kib = strtoul(total + 9, NULL, 10);
  if (available != NULL) agent->mem_available_kib = strtoul(available + 13, NULL, 10);
}

// The file may be removed or replaced by renaming: an open file without a name is not the one people mean.
static void refresh_app_file(struct agent *agent) {
  struct stat status;
  if (agent->app_fd >= 0 && (fstat(agent->app_fd, &status) < 0 || status.st_nlink == 0)) {
    close(agent->app_fd);
    agent->app_fd = -1;
  }
  if (agent->app_fd < 0) agent->app_fd = open(APP_STATUS_PATH, O_RDONLY | O_CLOEXEC);
}

// Writes the status (or "-") and returns its length. Reads until two readings agree, because reads of a tmpfs file are
// not atomic against a writer on another vCPU; after three tries the last one must do.
static size_t read_app_status(struct agent *agent, char *status) {
  char again[APP_STATUS_MAX];
  ssize_t length = -1;
  if (agent->app_fd >= 0) {
    length = pread(agent->app_fd, status, APP_STATUS_MAX, 0);
    for (int tries = 0; tries < 3 && length > 0; tries++) {
      ssize_t second = pread(agent->app_fd, again, APP_STATUS_MAX, 0);
      if (second == length && memcmp(status, again, (size_t)length) == 0) break;
      memcpy(status, again, sizeof again);
      length = second;
    }
  }
  size_t printable = 0;
  while ((ssize_t)printable < length && status[printable] >= ' ' && status[printable] <= '~') printable++;
  if (printable == 0) status[printable++] = '-';
  return printable;
}

static void beat(struct agent *agent) {
  if (agent->beats % SLOW_BEATS == 0) {
    refresh_memory(agent);
    refresh_app_file(agent);
  }
  agent->beats++;
  if (agent->port_fd < 0) open_port(agent);
  if (agent->output_length > 0) send_output(agent);
  // A beat behind unsent lines would be old when it arrives: what cannot be written now is dropped.
  if (agent->port_fd < 0 || agent->output_length > 0) return;
  size_t length = (size_t)snprintf(agent->output, sizeof agent->output, "beat %llu %lld %lu %lu ",
                                   (unsigned long long)agent->beats, (long long)(clock_ns(CLOCK_MONOTONIC) / 1000000),
                                   agent->mem_total_kib, agent->mem_available_kib);
  length += read_app_status(agent, agent->output + length);
  agent->output[length++] = '\n';
  agent->output_length = length;
  if (!send_output(agent)) agent->output_length = 0;
}

static void take_signals(struct agent *agent) {
  struct signalfd_siginfo info;
  while (read(agent->signal_fd, &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGCHLD) reap_children(agent);
    if (info.ssi_signo == SIGUSR1) say_bye(agent, true);
    if (info.ssi_signo == SIGUSR2) say_bye(agent, false);
  }
}

static _Noreturn void agent_main(void) {
  static struct agent agent = {.port_fd = -1, .app_fd = -1};
  // Above ordinary load, and never waiting for a page: a busy guest must not look like a dead one.
  struct sched_param priority = {.sched_priority = 50};
  if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority) < 0)
    console("agent runs without real-time priority: %s", strerror(errno));
  if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0) console("agent could not lock its memory: %s", strerror(errno));

  // Out of memory, the guest must end its services and not what speaks for it.
  write_file("/proc/self/oom_score_adj", "-1000");

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGCHLD);
  sigaddset(&signals, SIGUSR1);
  sigaddset(&signals, SIGUSR2);
  sigprocmask(SIG_BLOCK, &signals, NULL);
  agent.signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  agent.meminfo_fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);

  // The modules of the port are loading at this moment: looked for more often than beats come, it gives the host its
  // first sign of life at once. A machine without such a port is not worth the effort for long.
  agent.next_beat_ns = clock_ns(CLOCK_MONOTONIC);
  for (int tries = 0; tries < PORT_TRIES && agent.port_fd < 0; tries++) {
    open_port(&agent);
    if (agent.port_fd < 0) sleep_until_ns(agent.next_beat_ns += PORT_RETRY_NS);
  }
  for (;;) {
    int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    if (now_ns >= agent.next_beat_ns) {
      beat(&agent);
      agent.port_hung_up = false; // look again once per beat
      agent.next_beat_ns += BEAT_NS;
      now_ns = clock_ns(CLOCK_MONOTONIC);
      // After a pause of the whole VM the missed beats are not made up for.
      const int64_t late_ns = now_ns - agent.next_beat_ns;
      if (late_ns >= 0) agent.next_beat_ns += (late_ns / BEAT_NS + 1) * BEAT_NS;
    }
    // While no host is connected poll would return POLLHUP at once, again and again: such a port is left out until the
    // next beat.
    struct pollfd fds[2] = {
        {.fd = agent.signal_fd, .events = POLLIN},
        {.fd = agent.port_hung_up ? -1 : agent.port_fd, .events = POLLIN},
    };
    int64_t left_ns = agent.next_beat_ns - now_ns;
    struct timespec timeout = {left_ns / 1000000000LL, left_ns % 1000000000LL};
    if (ppoll(fds, 2, &timeout, NULL) <= 0) continue;
    if (fds[0].revents & POLLIN) take_signals(&agent);
    if (fds[1].revents & POLLIN)
      read_port(&agent);
    else if (fds[1].revents != 0) {
      agent.port_hung_up = true;
      agent.input_length = 0;
      agent.input_overlong = false;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// modules: one process instead of one insmod per module, which costs a good part of the boot under emulation.

static int modules_main(const char *list_path) {
  FILE *list = fopen(list_path, "re");
  if (list == NULL) {
    fprintf(stderr, "could not open %s: %s\n", list_path, strerror(errno));
    return 1;
  }
  int failures = 0;
  for (char path[256]; fgets(path, sizeof path, list) != NULL;) {
    path[strcspn(path, "\n")] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)) {
      fprintf(stderr, "could not load %s: %s\n", path, strerror(errno));
      failures++;
    }
    if (fd >= 0) close(fd);
  }
  fclose(list);
  return failures == 0 ? 0 : 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// memwriter

static _Noreturn void memwriter_main(long mib, long mib_per_second) {
  const int64_t slice_ns = 10000000;
  size_t pages = (size_t)mib * 256;
  uint64_t *region = map_pages(pages * PAGE_BYTES);
  uint64_t state = 1, written = 0;
  int64_t start_ns = clock_ns(CLOCK_MONOTONIC);
  for (size_t page = 0; page < pages; page++) region[page * PAGE_WORDS] = page + 1; // all of it is real memory from here
  for (;;) {
    int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    uint64_t due = UINT64_MAX;
    if (mib_per_second > 0) {
      due = (uint64_t)((double)(now_ns - start_ns) / 1e9 * (double)mib_per_second * 256.0);
      if (due > written + 256 * (uint64_t)mib_per_second) { // more than a second late: do not make up for it
        start_ns = now_ns;
        written = due = 0;
      }
    }
    for (int batch = 0; written < due && batch < 256; batch++, written++) {
      state = mix(state);
      uint64_t *page = region + (state % pages) * PAGE_WORDS;
      for (size_t word = 0; word < PAGE_WORDS; word++) page[word] = state += 0x9e3779b97f4a7c15ULL;
    }
    if (written >= due) sleep_until_ns(now_ns + slice_ns);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// memcheck
//
// Write i fills page p(i) with pattern(p, i) and notes last[p] = i in a table elsewhere; sum is the XOR over all pages of
// mix2(p, last[p]), kept up to date step by step. A memory made of two different moments has a page whose content does
// not agree with the table, or a table that does not agree with the sum, or a counter that does not agree with the table.

struct memcheck {
  uint64_t pages;
  uint64_t *region;
  uint64_t *last;
  uint64_t sum, counter, rounds, bad;
  uint64_t cursor; // next page to verify
};

static uint64_t page_of(const struct memcheck *m, uint64_t i) { return mix(i) % m->pages; }

static void write_page(struct memcheck *m, uint64_t p, uint64_t i) {
  uint64_t *page = m->region + p * PAGE_WORDS, value = mix2(p, i);
  page[0] = i;
  for (size_t word = 1; word < PAGE_WORDS; word++) page[word] = value += 0x9e3779b97f4a7c15ULL;
}

static void mismatch(struct memcheck *m, const char *what, uint64_t p, uint64_t found, uint64_t expected) {
  m->bad++;
  if (m->bad <= 100) // the count goes on; the console is slow
    console("memcheck: %s of page %llu is %llx, expected %llx (i=%llu)", what, (unsigned long long)p,
            (unsigned long long)found, (unsigned long long)expected, (unsigned long long)m->counter);
}

static void verify_page(struct memcheck *m, uint64_t p) {
  const uint64_t *page = m->region + p * PAGE_WORDS;
  if (page[0] != m->last[p]) {
    mismatch(m, "header", p, page[0], m->last[p]);
  } else {
    uint64_t value = mix2(p, page[0]);
    for (size_t word = 1; word < PAGE_WORDS; word++) {
      value += 0x9e3779b97f4a7c15ULL;
      if (page[word] == value) continue;
      mismatch(m, "a word", p, page[word], value);
      break;
    }
  }
}

static void verify_table(struct memcheck *m) {
  uint64_t sum = 0, newest = 0;
  for (uint64_t p = 0; p < m->pages; p++) {
    sum ^= mix2(p, m->last[p]);
    if (m->last[p] > newest) newest = m->last[p];
  }
  if (sum != m->sum) mismatch(m, "sum", m->pages, sum, m->sum);
  if (newest != m->counter) mismatch(m, "newest write", m->pages, newest, m->counter);
}

static _Noreturn void memcheck_main(long mib, long writes_per_second) {
  const int64_t publish_ns = 10000000;
  struct memcheck m = {.pages = (uint64_t)mib * 256};
  m.region = map_pages(m.pages * PAGE_BYTES);
  m.last = map_pages(m.pages * sizeof *m.last);
  for (uint64_t p = 0; p < m.pages; p++) {
    write_page(&m, p, 0);
    m.sum ^= mix2(p, 0);
  }
  int status_fd = app_status_open();
  int64_t start_ns = clock_ns(CLOCK_MONOTONIC), published_ns = 0;
  for (uint64_t paced = 0;;) {
    int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    if (now_ns - published_ns >= publish_ns) {
      app_status_write(status_fd, "memcheck i=%020llu rounds=%010llu bad=%010llu", (unsigned long long)m.counter,
                       (unsigned long long)m.rounds, (unsigned long long)m.bad);
      published_ns = now_ns;
    }
    if (writes_per_second > 0) {
      int64_t due_ns = start_ns + (int64_t)((double)paced / (double)writes_per_second * 1e9);
      if (due_ns > now_ns) {
        sleep_until_ns(due_ns < published_ns + publish_ns ? due_ns : published_ns + publish_ns);
        if (due_ns > clock_ns(CLOCK_MONOTONIC)) continue;
      } else if (now_ns - due_ns > 1000000000LL) { // more than a second late: do not make up for it
        start_ns = now_ns;
        paced = 0;
      }
      paced++;
    }
    uint64_t i = m.counter + 1, p = page_of(&m, i);
    verify_page(&m, p); // or else a third of the wrong pages would be overwritten before the round comes to them
    write_page(&m, p, i);
    m.sum ^= mix2(p, m.last[p]) ^ mix2(p, i);
    m.last[p] = i;
    m.counter = i;
    verify_page(&m, m.cursor);
    if (++m.cursor == m.pages) {
      m.cursor = 0;
      verify_table(&m);
      m.rounds++;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// cpuloop

static int cpuloop_main(long seconds) {
  const int64_t publish_ns = 50000000;
  int status_fd = app_status_open();
  int64_t start_ns = clock_ns(CLOCK_MONOTONIC), published_ns = 0, now_ns;
  uint64_t n = 0;
  uint64_t state = 1;
  do {
    for (int round = 0; round < 10000; round++) state = mix(state);
    n += state != 0; // uses the result, so that no compiler drops the work; mix() of a chain does not end in 0
    now_ns = clock_ns(CLOCK_MONOTONIC);
    if (now_ns - published_ns >= publish_ns) {
      app_status_write(status_fd, "cpuloop n=%llu", (unsigned long long)n);
      published_ns = now_ns;
    }
  } while (seconds == 0 || now_ns - start_ns < seconds * 1000000000LL);
  app_status_write(status_fd, "cpuloop n=%llu", (unsigned long long)n);
  return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// diskload

// Random: blocks of 4 KiB. Sequential: of 256 KiB. Nothing that is written can be compressed or is written twice.
static int diskload_main(const char *path, const char *how) {
  const int64_t publish_ns = 50000000;
  const bool reads = strcmp(how, "read") == 0;
  const size_t bytes = strcmp(how, "sequential") == 0 ? 256 * 1024 : 4096;
  int status_fd = app_status_open();
  int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
  off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
  uint64_t *buffer = map_pages(bytes);
  if (size < (off_t)bytes) {
    fprintf(stderr, "could not use the disk %s: %s\n", path, strerror(errno));
    return 1;
  }
  const uint64_t blocks = (uint64_t)size / bytes;
  uint64_t state = (uint64_t)clock_ns(CLOCK_MONOTONIC), done = 0;
  for (int64_t published_ns = 0;;) {
    for (size_t i = 0; i < bytes / sizeof *buffer && !reads; i++) buffer[i] = state = mix(state);
    const uint64_t block = bytes == 4096 ? mix(state += done + 1) % blocks : done / bytes % blocks;
    const off_t at = (off_t)(block * bytes);
    const ssize_t moved = reads ? pread(fd, buffer, bytes, at) : pwrite(fd, buffer, bytes, at);
    if (moved != (ssize_t)bytes) {
      console("diskload: could not %s %s: %s", reads ? "read" : "write", path, strerror(errno));
      return 1;
    }
    done += bytes;
    const int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    if (now_ns - published_ns < publish_ns) continue;
    app_status_write(status_fd, "diskload bytes=%llu", (unsigned long long)done);
    published_ns = now_ns;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// diskcheck

// The memory knows of each sector how often it was written, and a sector says that of itself: one that is of another
// moment than the memory is noticed when the round comes to it.
#define SECTOR_BYTES 512
#define SECTOR_WORDS (SECTOR_BYTES / sizeof(uint64_t))
#define WRITE_SECTORS 40 // at most; of pages of 4 KiB there are whole ones and parts
#define READ_SECTORS 128

struct diskcheck {
  int fd;
  uint64_t sectors, *versions, *buffer;
  uint64_t writes, rounds, bad, cursor;
};

static void fill_sectors(struct diskcheck *d, uint64_t first, uint64_t count) {
  for (uint64_t i = 0; i < count; i++)
    for (size_t word = 0; word < SECTOR_WORDS; word++)
      d->buffer[i * SECTOR_WORDS + word] = mix2(first + i, d->versions[first + i]) + word;
}

static bool write_sectors(struct diskcheck *d, uint64_t first, uint64_t count) {
  fill_sectors(d, first, count);
  const size_t bytes = count * SECTOR_BYTES;
  return pwrite(d->fd, d->buffer, bytes, (off_t)(first * SECTOR_BYTES)) == (ssize_t)bytes;
}

static bool verify_sectors(struct diskcheck *d, uint64_t first, uint64_t count) {
  const size_t bytes = count * SECTOR_BYTES;
  if (pread(d->fd, d->buffer, bytes, (off_t)(first * SECTOR_BYTES)) != (ssize_t)bytes) return false;
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t sector = first + i, expected = mix2(sector, d->versions[sector]);
    size_t word = 0;
    while (word < SECTOR_WORDS && d->buffer[i * SECTOR_WORDS + word] == expected + word) word++;
    if (word == SECTOR_WORDS) continue;
    if (d->bad++ < 8)
      console("diskcheck: sector %llu is not of version %llu from word %zu on", (unsigned long long)sector,
              (unsigned long long)d->versions[sector], word);
  }
  return true;
}

static int diskcheck_main(const char *path, const char *status, long writes_per_second) {
  const int64_t publish_ns = 10000000;
  struct diskcheck d = {.fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC)};
  const off_t size = d.fd < 0 ? -1 : lseek(d.fd, 0, SEEK_END);
  d.sectors = size < 0 ? 0 : (uint64_t)size / SECTOR_BYTES / READ_SECTORS * READ_SECTORS;
  d.versions = map_pages(d.sectors * sizeof *d.versions + 1);
  d.buffer = map_pages(READ_SECTORS * SECTOR_BYTES);
  bool good = d.sectors > 0;
  for (uint64_t first = 0; first < d.sectors && good; first += READ_SECTORS) good = write_sectors(&d, first, READ_SECTORS);
  const int status_fd = status_open(status);
  for (int64_t published_ns = 0; good;) {
    const uint64_t random = mix(d.writes + 1), first = random % d.sectors;
    const uint64_t longest = d.sectors - first < WRITE_SECTORS ? d.sectors - first : WRITE_SECTORS;
    const uint64_t count = 1 + (random >> 40) % longest;
    for (uint64_t i = 0; i < count; i++) d.versions[first + i]++;
    good = write_sectors(&d, first, count) && verify_sectors(&d, d.cursor, READ_SECTORS);
    d.writes++;
    d.cursor = (d.cursor + READ_SECTORS) % d.sectors;
    if (d.cursor == 0) d.rounds++;
    const int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    sleep_until_ns(now_ns + 1000000000LL / writes_per_second);
    if (now_ns - published_ns < publish_ns && d.cursor != 0) continue;
    app_status_write(status_fd, "writes=%020llu rounds=%010llu bad=%010llu", (unsigned long long)d.writes,
                     (unsigned long long)d.rounds, (unsigned long long)d.bad);
    published_ns = now_ns;
  }
  console("diskcheck: could not use %s: %s", path, strerror(errno));
  return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// netload

// Small: of the shortest length. Large: as long as a virtio device takes. Both are broadcasts by IPv4 with the sender's own
// MAC and say nothing. Garbage: of any length and with any bytes, the header of the frame included.
static int netload_main(const char *interface, const char *how, long seconds) {
  static uint64_t frame[65536 / sizeof(uint64_t)];
  const bool garbage = strcmp(how, "garbage") == 0, large = strcmp(how, "large") == 0;
  const size_t large_mtu = 65000;
  const int64_t publish_ns = 50000000;
  struct ifreq request = {0};
  snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
  if (large) request.ifr_mtu = (int)large_mtu;
  if (fd < 0 || (large && ioctl(fd, SIOCSIFMTU, &request) < 0) || ioctl(fd, SIOCGIFMTU, &request) < 0) {
    fprintf(stderr, "could not use the interface %s: %s\n", interface, strerror(errno));
    return 1;
  }
  const size_t longest = (size_t)request.ifr_mtu + ETH_HLEN;
  if (ioctl(fd, SIOCGIFHWADDR, &request) < 0) return 1;
  uint8_t *bytes = (uint8_t *)frame;
  struct ethhdr header = {.h_proto = htons(ETH_P_IP)};
  memset(header.h_dest, 0xff, ETH_ALEN);
  memcpy(header.h_source, request.ifr_hwaddr.sa_data, ETH_ALEN);
  memcpy(bytes, &header, sizeof header);
  struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface), .sll_halen = ETH_ALEN};
  memset(to.sll_addr, 0xff, ETH_ALEN);

  int status_fd = app_status_open();
  uint64_t state = 1, sent = 0;
  const int64_t start_ns = clock_ns(CLOCK_MONOTONIC);
  for (int64_t published_ns = 0, now_ns = start_ns; now_ns - start_ns < seconds * 1000000000LL;
       now_ns = clock_ns(CLOCK_MONOTONIC)) {
    size_t length = large ? longest : ETH_ZLEN;
    if (garbage) {
      length = ETH_HLEN + mix(state += sent + 1) % (longest - ETH_HLEN);
      for (size_t i = 0; i <= length / sizeof *frame; i++) frame[i] = state = mix(state);
    }
    // A full queue or a frame that the kernel refuses is no reason to end.
    sent += sendto(fd, bytes, length, 0, (struct sockaddr *)&to, sizeof to) >= 0;
    if (now_ns - published_ns < publish_ns) continue;
    app_status_write(status_fd, "netload sent=%llu", (unsigned long long)sent);
    published_ns = now_ns;
  }
  app_status_write(status_fd, "netload sent=%llu", (unsigned long long)sent);
  return 0;
}

int main(int argc, char **argv) {
  const char *verb = argc > 1 ? argv[1] : "";
  if (strcmp(verb, "agent") == 0 && argc == 2) agent_main();
  if (strcmp(verb, "modules") == 0 && argc == 3) return modules_main(argv[2]);
  if (strcmp(verb, "memwriter") == 0 && argc == 4)
    memwriter_main(number_argument("MiB", argv[2], 1, MIB_MAX),
                          number_argument("MiB/s", argv[3], 0, 1024 * 1024));
  if (strcmp(verb, "memcheck") == 0 && (argc == 3 || argc == 4))
    memcheck_main(number_argument("MiB", argv[2], 1, MIB_MAX),
                         argc == 4 ? number_argument("writes per second", argv[3], 0, 100000000) : 0);
  if (strcmp(verb, "cpuloop") == 0 && argc == 3) return cpuloop_main(number_argument("seconds", argv[2], 0, 1000000000));
  if (strcmp(verb, "diskload") == 0 && argc == 4) return diskload_main(argv[2], argv[3]);
  if (strcmp(verb, "diskcheck") == 0 && argc == 5)
    return diskcheck_main(argv[2], argv[3], number_argument("writes per second", argv[4], 1, 1000000));
  if (strcmp(verb, "netload") == 0 && argc == 5)
    return netload_main(argv[2], argv[3], number_argument("seconds", argv[4], 1, 1000000));
  fprintf(stderr, "usage: shadowvm-guest agent | modules <list> | memwriter <MiB> <MiB/s> | "
                  "memcheck <MiB> [writes/s] | cpuloop <seconds> | "
                  "diskload <path> random|sequential|read | diskcheck <path> <status> <writes/s> | "
                  "netload <interface> small|large|garbage <seconds>\n");
  return 2;
}
