// As in Microsoft's SDK: what dispatch/cpu_features.cc and kv/file.cc use. Numbers have 32 bits
// where Windows' have, also where unsigned long has 64.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__aarch64__) && defined(_WIN64)
using DWORD = unsigned long;
#else
using DWORD = uint32_t;
#endif
using BOOL = int;
using HANDLE = void*;
union LARGE_INTEGER {
  struct {
    DWORD LowPart;
    int32_t HighPart;
  } u;
  int64_t QuadPart;
};
struct SECURITY_ATTRIBUTES;

#define INVALID_HANDLE_VALUE (reinterpret_cast<HANDLE>(static_cast<intptr_t>(-1)))
#define INVALID_FILE_ATTRIBUTES (static_cast<DWORD>(-1))
#define FILE_ATTRIBUTE_DIRECTORY 0x10
#define FILE_ATTRIBUTE_NORMAL 0x80
#define FILE_BEGIN 0
#define FILE_SHARE_READ 0x1
#define FILE_SHARE_DELETE 0x4
#define GENERIC_READ 0x80000000u
#define GENERIC_WRITE 0x40000000u
#define CREATE_NEW 1
#define OPEN_EXISTING 3
#define MOVEFILE_REPLACE_EXISTING 0x1
#define MOVEFILE_WRITE_THROUGH 0x8
#define FORMAT_MESSAGE_IGNORE_INSERTS 0x200
#define FORMAT_MESSAGE_FROM_SYSTEM 0x1000
#define ERROR_NOT_ENOUGH_MEMORY 8
#define ERROR_FILE_EXISTS 80

extern "C" {
BOOL IsProcessorFeaturePresent(DWORD feature);
DWORD GetLastError();
DWORD GetCurrentProcessId();
DWORD FormatMessageA(DWORD flags, const void* source, DWORD message, DWORD language, char* buffer,
                     DWORD bytes, void* arguments);
HANDLE CreateFileA(const char* name, DWORD access, DWORD share, SECURITY_ATTRIBUTES* security,
                   DWORD disposition, DWORD attributes, HANDLE pattern);
BOOL CloseHandle(HANDLE handle);
BOOL ReadFile(HANDLE file, void* buffer, DWORD bytes, DWORD* read, void* overlapped);
BOOL WriteFile(HANDLE file, const void* buffer, DWORD bytes, DWORD* written, void* overlapped);
BOOL SetFilePointerEx(HANDLE file, LARGE_INTEGER distance, LARGE_INTEGER* position, DWORD origin);
BOOL GetFileSizeEx(HANDLE file, LARGE_INTEGER* bytes);
BOOL FlushFileBuffers(HANDLE file);
BOOL DeleteFileA(const char* name);
BOOL MoveFileExA(const char* from, const char* to, DWORD flags);
DWORD GetFileAttributesA(const char* name);
}
