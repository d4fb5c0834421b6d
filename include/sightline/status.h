// File: sightline/status.h
// What every fallible call returns: a code to branch on and a message to read.
//
//   if (Status status = Run(plan, args); !status.ok()) puts(status.message());
//
// The message names the argument, what was given and what is allowed. It lives inside the object,
// so that reporting an error allocates nothing. The library never throws, aborts or prints.
#ifndef SIGHTLINE_STATUS_H_
#define SIGHTLINE_STATUS_H_

namespace sightline {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument,   // the arguments contradict the documentation: fix the caller
  kUnsupported,       // well-formed, but not offered by this build, this CPU or this layout
  kOutOfMemory,       // an allocation failed; nothing was changed
  kCapacityExceeded,  // larger than what the plan or cache was created for; nothing was changed
  kBusy,              // the plan's own workspace serves another Run right now
  kIoError,           // the operating system refused: the message has its words
  kCorrupt,           // a file is cut off, or not what its checksums say
};

class [[nodiscard]] Status {
 public:
  // Longest message kept, including the terminating zero; longer ones are cut.
  static constexpr int kMaxMessageBytes = 512;

  Status() noexcept { message_[0] = '\0'; }
  // Calls return many, most of them without a message.
  Status(const Status& other) noexcept { *this = other; }
  Status& operator=(const Status& other) noexcept {
    code_ = other.code_;
    for (int i = 0; (message_[i] = other.message_[i]) != '\0'; ++i) {
    }
    return *this;
  }
  // Formats the message as printf does.
#if defined(__GNUC__)
  __attribute__((format(printf, 2, 3)))
#endif
  static Status
  Error(StatusCode code, const char* format, ...);

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  // Never null; "" when ok(). Valid as long as this object.
  const char* message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  char message_[kMaxMessageBytes];  // nothing is set behind its end
};

}  // namespace sightline

#endif  // SIGHTLINE_STATUS_H_
