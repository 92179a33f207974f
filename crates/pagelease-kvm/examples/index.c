/* The device's part of both examples: looks keys up in the program's index, and counts each that it finds. */
#include <stdint.h>

struct node {
    struct node *next;
    uint64_t key;
    uint64_t count;
    uint64_t unused;
};

struct argument {
    struct node **buckets;
    /* What is to be added to a pointer of the program's: 0 where memory is where the program has it. */
    uint64_t moved;
    uint64_t keys;
    uint64_t key[];
};

static struct node *at(const struct argument *argument, struct node *node)
{
    return node ? (struct node *)((char *)node + argument->moved) : 0;
}

uint64_t count_keys(const struct argument *argument, uint64_t lane, uint64_t lanes)
{
    uint64_t found = 0;
    for (uint64_t i = lane; i < argument->keys; i += lanes) {
        uint64_t key = argument->key[i];
        struct node *node = at(argument, argument->buckets[key * 0x9e3779b97f4a7c15 >> 44]);
        while (node && node->key != key)
            node = at(argument, node->next);
        if (node) {
            /* One instruction, without a lock: exact because the page is the device's while it executes. */
            __asm__("incq %0" : "+m"(node->count));
            found++;
        }
    }
    return found;
}
