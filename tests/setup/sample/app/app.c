// The sample application that tests deploy: answers every request with the word it was made with, and knows how to be a
// bad version. A static program of one file, so that its image is small and its start costs nothing.
//
//   WORD                  what it answers
//   BEHAVIOUR             good | crashes (ends with 3 at once) | sick (runs, and is never well)
//   TURNS_BAD_AFTER_SECS  from then on every answer is a 500
//   DRAIN_MS              after TERM it goes on answering for this long, for those who do not know yet that it goes
//
//   app                   serves on port 8080
//   app health            asks the one in the same container whether it is well; what it prints is the reason

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 8080 };

static const char *word, *behaviour;
static double began, bad_after = -1;
static volatile sig_atomic_t leaving;
static int under_way;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static void count(int by) {
    pthread_mutex_lock(&lock);
    under_way += by;
    pthread_mutex_unlock(&lock);
}

static void *answer(void *arg) {
    int fd = (int)(long)arg;
    char request[4096], body[256], head[256];
    size_t have = 0;
    struct timeval patience = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (have < sizeof request - 1) {
        ssize_t n = read(fd, request + have, sizeof request - 1 - have);
        if (n <= 0) break;
        have += n;
        request[have] = 0;
        if (strstr(request, "\r\n\r\n")) break;
    }
    request[have] = 0;
    int health = !strncmp(request, "GET /health", 11);
    int bad = bad_after >= 0 && now() - began > bad_after;
    int status = bad && !health ? 500 : 200;
    if (health && !strcmp(behaviour, "sick")) status = 503;
    snprintf(body, sizeof body, "%s\n", status == 503 ? "not today" : status == 500 ? "turned bad" : word);
    snprintf(head, sizeof head, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
             status == 200 ? "OK" : "Bad", strlen(body));
    if (have && write(fd, head, strlen(head)) > 0 && write(fd, body, strlen(body)) > 0) {
        shutdown(fd, SHUT_WR);
        while (read(fd, request, sizeof request) > 0) {}
    }
    close(fd);
    count(-1);
    return NULL;
}

static int ask_health(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char got[1024];
    size_t have = 0;
    ssize_t n;
    const char *request = "GET /health HTTP/1.0\r\n\r\n";
    if (connect(fd, (void *)&to, sizeof to) || write(fd, request, strlen(request)) < 0) {
        printf("nobody answers: %s\n", strerror(errno));
        return 1;
    }
    while (have < sizeof got - 1 && (n = read(fd, got + have, sizeof got - 1 - have)) > 0) have += n;
    got[have] = 0;
    char *body = strstr(got, "\r\n\r\n");
    fputs(body ? body + 4 : "no answer\n", stdout);
    return !strncmp(got, "HTTP/1.1 200", 12) ? 0 : 1;
}

static void on_term(int signal) {
    (void)signal;
    leaving = 1;
}

int main(int argc, char **argv) {
    word = setting("WORD", "nothing");
    behaviour = setting("BEHAVIOUR", "good");
    bad_after = atof(setting("TURNS_BAD_AFTER_SECS", "-1"));
    began = now();
    if (argc > 1 && !strcmp(argv[1], "health")) return ask_health();
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(behaviour, "crashes")) {
        printf("out of luck\n");
        return 3;
    }
    // Without SA_RESTART, so that accept() wakes up.
    struct sigaction term = {.sa_handler = on_term};
    sigaction(SIGTERM, &term, NULL);
    sigaction(SIGINT, &term, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = INADDR_ANY};
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (void *)&any, sizeof any) || listen(server, 256)) {
        perror("listen");
        return 1;
    }
    // So that the end of the drain is noticed when nobody asks.
    struct timeval look = {0, 100000};
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &look, sizeof look);
    printf("%s serves\n", word);
    double until = 0;
    for (;;) {
        if (leaving && !until) {
            until = now() + atof(setting("DRAIN_MS", "500")) / 1000;
            printf("%s drains\n", word);
        }
        if (until && now() > until) break;
        int fd = accept(server, NULL, NULL);
        if (fd < 0) continue;
        pthread_t thread;
        count(1);
        if (pthread_create(&thread, NULL, answer, (void *)(long)fd)) {
            close(fd);
            count(-1);
        } else {
            pthread_detach(thread);
        }
    }
    close(server);
    for (int i = 0; i < 50 && under_way > 0; i++) usleep(100000);
    printf("%s ends\n", word);
    return 0;
}
