// Runs the built programs as a user would: arguments, signals, exit codes, output.
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

namespace lc::test {

using Arguments = std::vector<std::string>;

// A running child. stdout and stderr go to files (empty: /dev/null).
class Process {
  public:
    Process(const std::string& program, const Arguments& arguments, const std::string& out = {},
            const std::string& err = {}) {
        std::vector<std::string> words{std::string(LC_BINARY_DIR "/") + program};
        words.insert(words.end(), arguments.begin(), arguments.end());
        std::vector<char*> argv;
        for (std::string& word : words) argv.push_back(word.data());
        argv.push_back(nullptr);
        pid_ = ::fork();
        if (pid_ != 0) return;
        redirect(out, STDOUT_FILENO), redirect(err, STDERR_FILENO);
        ::execv(argv[0], argv.data());
        ::_exit(127);
    }
    ~Process() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        wait();
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;

    void send(int signal) const { ::kill(pid_, signal); }
    // The exit code; 1000 + n when signal n ended it.
    int wait() {
        int status = 0;
        ::waitpid(pid_, &status, 0);
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }
    // True when it ended by itself within the time; its code is then `code`.
    bool ended_within(std::chrono::milliseconds time, int& code) {
        const auto end = std::chrono::steady_clock::now() + time;
        do {
            int status = 0;
            if (::waitpid(pid_, &status, WNOHANG) == pid_) {
                pid_ = -1;
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
                return true;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }

  private:
    static void redirect(const std::string& path, int target) {
        const int fd = ::open(path.empty() ? "/dev/null" : path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd >= 0) ::dup2(fd, target);
    }
    pid_t pid_ = -1;
};

inline int run_program(const std::string& program, const Arguments& arguments, const std::string& out = {},
                       const std::string& err = {}) {
    return Process(program, arguments, out, err).wait();
}

}  // namespace lc::test
