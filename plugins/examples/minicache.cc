// The engine of minicache.c in C++11: objects and strings inside, no exception across the border.
//
//     c++ -std=c++11 -shared -fPIC -fvisibility=hidden -o libyagent_minicache.so minicache.cc
#include "yagent/plugin.h"

#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// The sink with strings.
class Sink {
public:
    explicit Sink(const yagent_sink *raw) : raw_(raw) {}
    void send(const std::string &bytes) const { raw_->send(raw_, bytes.data(), bytes.size()); }
    void health(uint32_t code, const std::string &why) const { raw_->health(raw_, code, why.data(), why.size()); }
    void text(const std::string &name, const std::string &value) const {
        raw_->text(raw_, name.data(), name.size(), value.data(), value.size());
    }
    void number(uint32_t kind, const std::string &name, double value) const {
        raw_->number(raw_, kind, name.data(), name.size(), value);
    }
    void fail(const std::string &why) const { raw_->fail(raw_, why.data(), why.size()); }

private:
    const yagent_sink *raw_;
};

std::string string_of(yagent_str text) { return text.len == 0 ? std::string() : std::string(text.ptr, text.len); }

class Engine {
public:
    explicit Engine(const yagent_settings &settings)
        : program_(setting(settings, "program")), port_(setting(settings, "port")),
          bind_(setting(settings, "bind")), megabytes_(setting(settings, "maxmem_mb")) {
        if (program_.empty() || port_.empty() || megabytes_.empty()) {
            throw std::invalid_argument("`program`, `port` or `maxmem_mb` is not set");
        }
    }

    int32_t start(const yagent_event &event, const Sink &sink) const {
        if (event.kind != YAGENT_BEGIN) return YAGENT_UNSUPPORTED;
        sink.text("program", program_);
        for (const std::string &arg : {std::string("--port"), port_, std::string("--megabytes"), megabytes_}) {
            sink.text("argv", arg);
        }
        if (!bind_.empty()) {
            sink.text("argv", "--bind");
            sink.text("argv", bind_);
        }
        return YAGENT_DONE;
    }

    int32_t probe(const yagent_event &event, const Sink &sink) const {
        if (event.kind == YAGENT_BEGIN) {
            sink.send("get yagent:probe\n");
            return YAGENT_MORE;
        }
        if (event.kind != YAGENT_BYTES) return refuse(event);
        const std::vector<std::string> lines = whole_lines(event);
        if (lines.empty()) return YAGENT_MORE;
        const std::string &line = lines.front();
        if (line == "none" || line.compare(0, 6, "value ") == 0) sink.health(YAGENT_SERVING, "");
        else if (line == "full") sink.health(YAGENT_FULL, "out of memory");
        else sink.health(YAGENT_WRONG, "this is no minicache");
        return YAGENT_DONE;
    }

    int32_t stats(const yagent_event &event, const Sink &sink) const {
        if (event.kind == YAGENT_BEGIN) {
            sink.send("stats\n");
            return YAGENT_MORE;
        }
        if (event.kind != YAGENT_BYTES) return refuse(event);
        const std::vector<std::string> lines = whole_lines(event);
        std::size_t count = 0;
        while (count < lines.size() && lines[count] != "end") count++;
        if (count == lines.size()) return YAGENT_MORE;
        for (std::size_t i = 0; i < count; i++) figure(lines[i], sink);
        return YAGENT_DONE;
    }

private:
    static std::string setting(const yagent_settings &settings, const char *name) {
        for (uint64_t i = settings.pairs_len; i-- > 0;) {
            if (string_of(settings.pairs[i].name) == name) return string_of(settings.pairs[i].value);
        }
        return std::string();
    }

    static int32_t refuse(const yagent_event &event) {
        if (event.kind > YAGENT_CANCEL) return YAGENT_UNSUPPORTED;
        throw std::runtime_error("no answer");
    }

    static std::vector<std::string> whole_lines(const yagent_event &event) {
        std::vector<std::string> lines;
        const char *from = reinterpret_cast<const char *>(event.bytes), *last = from + event.bytes_len;
        while (from != last) {
            const char *end = static_cast<const char *>(std::memchr(from, '\n', static_cast<std::size_t>(last - from)));
            if (end == nullptr) break;
            lines.emplace_back(from, end);
            from = end + 1;
        }
        return lines;
    }

    static void figure(const std::string &line, const Sink &sink) {
        const std::size_t space = line.find(' ');
        if (space == std::string::npos) throw std::runtime_error("a line is no NAME VALUE");
        const std::string name = line.substr(0, space), value = line.substr(space + 1);
        if (name == "version") return sink.text(name, value);
        if (value.empty() || value.size() >= 20 || value.find_first_not_of("0123456789") != std::string::npos) {
            throw std::runtime_error("a line is no NAME VALUE");
        }
        const bool counts = name == "gets" || name == "hits" || name == "sets";
        sink.number(counts ? YAGENT_COUNTER : YAGENT_GAUGE, name, std::stod(value));
    }

    std::string program_, port_, bind_, megabytes_;
};

// An exception becomes the reason of an error; none leaves the plugin.
template <int32_t (Engine::*method)(const yagent_event &, const Sink &) const>
int32_t hook(void *instance, const yagent_event *event, const yagent_sink *sink) noexcept {
    try {
        return (static_cast<Engine *>(instance)->*method)(*event, Sink(sink));
    } catch (const std::exception &error) {
        Sink(sink).fail(error.what());
        return YAGENT_ERROR;
    } catch (...) {
        return YAGENT_BROKEN;
    }
}

void *create(const yagent_settings *settings, const yagent_sink *sink) noexcept {
    try {
        return new Engine(*settings);
    } catch (const std::exception &error) {
        Sink(sink).fail(error.what());
    } catch (...) {
    }
    return nullptr;
}

void destroy(void *instance) noexcept { delete static_cast<Engine *>(instance); }

#define STR(text) { text, sizeof(text) - 1 }

const yagent_plugin plugin = {
    YAGENT_ABI_MAGIC, sizeof(yagent_plugin), YAGENT_ABI_MAJOR, YAGENT_ABI_MINOR, 0, 0,
    STR("org.example.minicache"), STR("0.1.0"), STR("minicache"), STR("minicache"), STR("minicache_"),
    STR("/minicache"), STR(""), STR(""),
    create, destroy, hook<&Engine::start>, hook<&Engine::probe>, hook<&Engine::stats>, nullptr, nullptr
};

} // namespace

const yagent_plugin *yagent_plugin_v1(const yagent_host *) { return &plugin; }
