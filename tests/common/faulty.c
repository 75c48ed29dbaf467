/* A PJRT plugin that is another one but for what it does wrong. Built by tests/faults.rs with the header of the package
 * xla-cpu-pjrt, and with PLUGIN, the library that it stands before. FAULT, in the environment, says what it does wrong. */

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pjrt_c_api.h"

static const PJRT_Api* real;
static union {
  PJRT_Api api;
  char bytes[1 << 16];
} table;

static int has_fault(const char* fault) {
  const char* wanted = getenv("FAULT");
  return wanted && strstr(wanted, fault);
}

/* A genuine error of the plugin's: it refuses arguments of no size. */
static PJRT_Error* refusal(void) {
  PJRT_Event_IsReady_Args args;
  memset(&args, 0, sizeof args);
  return real->PJRT_Event_IsReady(&args);
}

static PJRT_Error* on_ready(PJRT_Event_OnReady_Args* args) { return refusal(); }
static PJRT_Error* await(PJRT_Event_Await_Args* args) { return refusal(); }
static PJRT_Error* is_ready(PJRT_Event_IsReady_Args* args) { return refusal(); }

static void* write_late(void* memory) {
  usleep(200000);
  *(volatile char*)memory = 1;
  return 0;
}

/* A device that still writes after the call has returned. */
static PJRT_Error* to_host(PJRT_Buffer_ToHostBuffer_Args* args) {
  pthread_t thread;
  PJRT_Error* error = real->PJRT_Buffer_ToHostBuffer(args);
  if (args->dst && !error && !pthread_create(&thread, 0, write_late, args->dst)) pthread_detach(thread);
  return error;
}

const PJRT_Api* GetPjrtApi(void) {
  void* library = dlopen(PLUGIN, RTLD_NOW | RTLD_LOCAL);
  if (!library) return 0;
  real = ((const PJRT_Api* (*)(void))dlsym(library, "GetPjrtApi"))();
  memcpy(&table, real, real->struct_size < sizeof table ? real->struct_size : sizeof table);
  if (has_fault("on_ready")) table.api.PJRT_Event_OnReady = on_ready;
  if (has_fault("await")) table.api.PJRT_Event_Await = await;
  if (has_fault("never_says")) table.api.PJRT_Event_IsReady = is_ready;
  if (has_fault("writes_late")) table.api.PJRT_Buffer_ToHostBuffer = to_host;
  return &table.api;
}
