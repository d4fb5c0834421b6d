// Counts allocations of the whole process, all threads, through malloc and its relatives, which
// operator new calls as well.
//
// Only where the C library lets a program bring its own (glibc), and not under a sanitizer, which
// brings its own already: CanCountAllocations() says so, and the tests skip.
#ifndef SIGHTLINE_TESTS_SUPPORT_ALLOCATIONS_H_
#define SIGHTLINE_TESTS_SUPPORT_ALLOCATIONS_H_

#include <stdint.h>

namespace sightline {
namespace testing {

bool CanCountAllocations();

// Counts between construction and Stop(). One at a time.
class AllocationCounter {
 public:
  AllocationCounter();
  ~AllocationCounter() { Stop(); }
  AllocationCounter(const AllocationCounter&) = delete;
  AllocationCounter& operator=(const AllocationCounter&) = delete;

  int64_t Stop();         // calls that asked for memory
  int64_t bytes() const;  // what they asked for
};

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_ALLOCATIONS_H_
