package Conformance::Database;

# A connection to a database.  Queries do not block, since the server's workers talk to this very process; they run one
# after another.  What goes in and comes out is text: JSON is made and read by the server.

use Mojo::Base -base;
use strict;
use warnings;

use Mojo::Pg;
use Mojo::Promise;

has 'db';
has last => sub { Mojo::Promise->resolve };

# Connecting does block, but waits for nothing that this process would have to do.
sub connect {
    my ($class, $socket, $name) = @_;
    my $pg = Mojo::Pg->new->dsn("dbi:Pg:host=$socket;dbname=$name")->username('postgres');
    return $class->new(pg => $pg, db => $pg->db);
}

# Runs a query when those before have ended; a promise of the first row's values.  Rejected with the server's message.
sub row {
    my ($self, $query, @values) = @_;

    return $self->in_turn(sub { $self->row_now($query, @values) });
}

# The same at once, for those whose turn it is
sub row_now {
    my ($self, $query, @values) = @_;

    return $self->db->dollar_only->query_p($query, @values)->then(
        sub {
            my ($results) = @_;
            my $row = $results->sth->{NUM_OF_FIELDS} ? $results->array : undef;
            return @{$row || []};
        },
        sub {
            my ($error) = @_;
            return Mojo::Promise->reject($self->db->dbh->pg_error_field('message_primary') // $error);
        }
    );
}

# Calls a function when the promises of those before are settled; a promise of what its own promise gives
sub in_turn {
    my ($self, $function) = @_;

    my $promise = $self->last->then($function);
    $self->last($promise->catch(sub { }));
    return $promise;
}

sub disconnect {
    my ($self) = @_;
    $self->db->disconnect;
}

1;
